"""Blocks of the zoo that look at all channels of a place, count in places, or compute their weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.structure.zoo_attention import Tokens
from tests.structure.zoo_blocks import Block, conv


class AcrossChannels(Block):
    """A function over all channels of a place: what a removed channel holds counts there, zero or not."""

    def __init__(self, channels: int, size: int, *, kind: str, act: str) -> None:
        super().__init__(channels, size)
        self.kind = kind
        self.body = conv(channels, channels, 1, act=act)
        self.read = nn.Conv2d(2 if kind == "pool" else channels, 1 if kind == "pool" else channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.kind == "pool":
            pooled = torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)
            return y * self.read(pooled).sigmoid()  # type: ignore[no-any-return]
        return self.read(F.softmax(y, dim=1) if self.kind == "softmax" else F.normalize(y, dim=1))  # type: ignore[no-any-return]


class Coordinates(Block):
    """A convolution that also reads where it is."""

    def __init__(self, channels: int, size: int, *, out: int, act: str) -> None:
        super().__init__(out, size)
        self.body = conv(channels + 2, out, 3, act=act)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        rows = torch.linspace(-1, 1, h, dtype=x.dtype).view(1, 1, h, 1).expand(n, 1, h, w)
        columns = torch.linspace(-1, 1, w, dtype=x.dtype).view(1, 1, 1, w).expand(n, 1, h, w)
        return self.body(torch.cat([x, rows, columns], 1))  # type: ignore[no-any-return]


class CrossStage(Block):
    """One half of the channels goes past the layers and meets the other behind them."""

    def __init__(self, channels: int, size: int, *, half: int, act: str) -> None:
        super().__init__(channels, size)
        self.into = conv(channels, 2 * half, 1, act=act)
        self.layer = conv(half, half, 3, act=act)
        self.out = conv(2 * half, channels, 1, act=act)

    def forward(self, x: Tensor) -> Tensor:
        past, through = self.into(x).chunk(2, 1)
        return self.out(torch.cat((past, self.layer(through)), 1))  # type: ignore[no-any-return]


class Selective(Block):
    """Kernels of several sizes, weighed against each other channel by channel."""

    def __init__(self, channels: int, size: int, *, out: int, act: str) -> None:
        super().__init__(out, size)
        self.kernels = nn.ModuleList([conv(channels, out, kernel, act=act) for kernel in (1, 3)])
        self.choose = nn.ModuleList([nn.Linear(out, out) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack([kernel(x) for kernel in self.kernels])
        summary = maps.sum(0).mean((2, 3))
        weights = torch.stack([choose(summary) for choose in self.choose]).softmax(0)
        return (maps * weights[..., None, None]).sum(0)


class StandardConv2d(nn.Conv2d):
    """A convolution whose weight is standardised when it is used."""

    def forward(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (deviation + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Standardised(Block):
    def __init__(self, channels: int, size: int, *, out: int, act: str) -> None:
        super().__init__(out, size)
        self.body = StandardConv2d(channels, out, 3, padding=1)
        self.behind = conv(out, out, 1, act=act)

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.body(x))  # type: ignore[no-any-return]


class EinsumAttention(Tokens):
    """Attention in Einstein's notation."""

    def __init__(self, channels: int, size: int, *, heads: int, head_dim: int) -> None:
        super().__init__(channels, size)
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * heads * head_dim)
        self.out = nn.Linear(heads * head_dim, channels)

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in self.qkv(x).chunk(3, dim=-1))
        scores = torch.einsum("nthd,nshd->nhts", q, k).softmax(-1)
        return x + self.out(torch.einsum("nhts,nshd->nthd", scores, v).flatten(2))  # type: ignore[no-any-return]


class TokenMixing(Tokens):
    """MLP-Mixer: a linear layer over places, then one over channels."""

    def __init__(self, channels: int, size: int, *, hidden: int) -> None:
        super().__init__(channels, size)
        self.norm = nn.LayerNorm(channels)
        self.places = nn.Sequential(nn.Linear(size * size, hidden), nn.GELU(), nn.Linear(hidden, size * size))
        self.inside = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))

    def mix(self, x: Tensor) -> Tensor:
        x = x + self.places(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.inside(x)  # type: ignore[no-any-return]


ODD_BLOCKS: dict[str, type[Block]] = {
    cls.__name__: cls
    for cls in (
        AcrossChannels,
        Coordinates,
        CrossStage,
        Selective,
        Standardised,
        EinsumAttention,
        TokenMixing,
    )
}
