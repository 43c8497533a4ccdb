"""Blocks as people write them: each takes a feature map [N, C, H, W] and gives one, in plain torch code.

A block is made by `Block(channels, size, **what was drawn)`, and knows what it `gives`: channels, and H which is W.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Any] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,  # 0.5 of nothing
    "softplus": nn.Softplus,  # 0.7 of nothing
    "hardswish": nn.Hardswish,
    "leaky": partial(nn.LeakyReLU, 0.1),
}


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of a map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class HandNorm2d(nn.Module):
    """The same, written out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


NORMS: dict[str, Any] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(2, channels),
    "layer": LayerNorm2d,
    "hand": HandNorm2d,
    "instance": partial(nn.InstanceNorm2d, affine=True),
    "none": lambda channels: nn.Identity(),
}


class Block(nn.Module):
    """A block that gives `channels` channels of `size` by `size`."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.gives = (channels, size)


def conv(into: int, out: int, kernel: int = 3, *, norm: str = "batch", act: str = "relu", **options: Any) -> nn.Module:
    """Convolution, norm, activation."""
    layer = nn.Conv2d(into, out, kernel, padding=kernel // 2, **options)
    return nn.Sequential(layer, NORMS[norm](out), ACTIVATIONS[act]())


class Plain(Block):
    def __init__(self, channels: int, size: int, *, out: int, kernel: int, stride: int, norm: str, act: str) -> None:
        stride = stride if size >= 4 else 1
        super().__init__(out, size // stride)
        self.body = conv(channels, out, kernel, norm=norm, act=act, stride=stride, bias=norm == "none")

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


class Residual(Block):
    """A basic block; with another width or stride the shortcut is projected."""

    def __init__(self, channels: int, size: int, *, out: int, stride: int, norm: str, act: str) -> None:
        stride = stride if size >= 4 else 1
        super().__init__(out, size // stride)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm1 = NORMS[norm](out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = NORMS[norm](out)
        self.act = ACTIVATIONS[act]()
        self.shortcut = None
        if stride != 1 or out != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.shortcut is None else self.shortcut(x)
        y = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        y += identity
        return self.act(y)  # type: ignore[no-any-return]


class PreActivation(Block):
    """Norm and activation before each convolution; the shortcut carries what no norm has seen."""

    def __init__(self, channels: int, size: int, *, hidden: int, act: str) -> None:
        super().__init__(channels, size)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(hidden)
        self.conv1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.conv2 = nn.Conv2d(hidden, channels, 3, padding=1)
        self.act = ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.act(self.norm1(x)))
        return x + self.conv2(self.act(self.norm2(y)))  # type: ignore[no-any-return]


class Dense(Block):
    """Every layer reads all before it."""

    def __init__(self, channels: int, size: int, *, growth: int, layers: int, act: str) -> None:
        super().__init__(channels + layers * growth, size)
        self.layers = nn.ModuleList()
        for i in range(layers):
            into = channels + i * growth
            norm = nn.BatchNorm2d(into)
            self.layers.append(nn.Sequential(norm, ACTIVATIONS[act](), nn.Conv2d(into, growth, 3, padding=1)))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


class Grouped(Block):
    """ResNeXt's bottleneck: a grouped convolution between two that are not."""

    def __init__(self, channels: int, size: int, *, groups: int, each: int, act: str) -> None:
        super().__init__(channels, size)
        width = groups * each
        self.reduce = conv(channels, width, 1, act=act, bias=False)
        self.grouped = conv(width, width, 3, act=act, groups=groups, bias=False)
        self.expand = nn.Sequential(nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.act = ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.expand(self.grouped(self.reduce(x))))  # type: ignore[no-any-return]


class Depthwise(Block):
    """An inverted residual, with a multiplier of channels inside on request."""

    def __init__(self, channels: int, size: int, *, expand: int, multiplier: int, act: str) -> None:
        super().__init__(channels, size)
        hidden = channels * expand
        self.expand = conv(channels, hidden, 1, act=act, bias=False)
        self.depthwise = conv(hidden, hidden * multiplier, 3, act=act, groups=hidden, bias=False)
        self.project = nn.Sequential(nn.Conv2d(hidden * multiplier, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.depthwise(self.expand(x)))  # type: ignore[no-any-return]


class SqueezeExcite(Block):
    """Channels weighed by what all of them say, through convolutions or linear layers."""

    def __init__(self, channels: int, size: int, *, hidden: int, linear: bool, act: str) -> None:
        super().__init__(channels, size)
        self.body = conv(channels, channels, act=act)
        self.linear = linear
        kind: Any = nn.Linear if linear else partial(nn.Conv2d, kernel_size=1)
        self.down, self.up = kind(channels, hidden), kind(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.linear:
            scale = self.up(F.relu(self.down(y.mean((2, 3)))))[:, :, None, None]
        else:
            scale = self.up(F.silu(self.down(F.adaptive_avg_pool2d(y, 1))))
        return y * scale.sigmoid()  # type: ignore[no-any-return]


class Inception(Block):
    """Branches of several kernels beside each other, and a pool."""

    def __init__(self, channels: int, size: int, *, a: int, b: int, c: int, act: str) -> None:
        super().__init__(a + b + c, size)
        self.one = conv(channels, a, 1, act=act)
        self.three = nn.Sequential(conv(channels, b, 1, act=act), conv(b, b, 3, act=act))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(channels, c, 1, act=act))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in (self.one, self.three, self.pooled)], dim=1)


class Pyramid(Block):
    """A feature pyramid: laterals, top-down sums, smoothing; then one level, or all of them at one size."""

    def __init__(self, channels: int, size: int, *, deep: int, out: int, all_levels: bool, act: str) -> None:
        super().__init__(out * 2 if all_levels else out, size)
        self.down = nn.Sequential(nn.Conv2d(channels, deep, 3, 2, 1), nn.BatchNorm2d(deep), ACTIVATIONS[act]())
        self.laterals = nn.ModuleList([nn.Conv2d(channels, out, 1), nn.Conv2d(deep, out, 1)])
        self.smooth = nn.ModuleList([nn.Conv2d(out, out, 3, padding=1) for _ in range(2)])
        self.all_levels = all_levels

    def forward(self, x: Tensor) -> Tensor:
        levels = [lateral(y) for lateral, y in zip(self.laterals, (x, self.down(x)), strict=True)]
        levels[0] = levels[0] + F.interpolate(levels[1], size=levels[0].shape[-2:], mode="nearest")
        outs = [smooth(level) for smooth, level in zip(self.smooth, levels, strict=True)]
        if not self.all_levels:
            return outs[0]  # type: ignore[no-any-return]
        up = F.interpolate(outs[1], size=outs[0].shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat((outs[0], up), 1)


class Up(Block):
    """A transposed convolution, after going down."""

    def __init__(self, channels: int, size: int, *, hidden: int, out: int, norm: str, act: str) -> None:
        super().__init__(out, size + size % 2)
        self.down = conv(channels, hidden, 3, act=act, stride=2)
        self.up = nn.ConvTranspose2d(hidden, out, 2, 2, bias=norm == "none")
        self.norm = NORMS[norm](out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.up(self.down(x))).relu()  # type: ignore[no-any-return]


class Shuffle(Block):
    """Grouped convolutions with a channel shuffle between them: torch's, or written out."""

    def __init__(self, channels: int, size: int, *, groups: int, each: int, by_hand: bool, act: str) -> None:
        width = groups * each
        super().__init__(width, size)
        self.first = conv(channels, width, 1, act=act)
        self.second = nn.Conv2d(width, width, 3, padding=1, groups=groups)
        self.groups = groups
        self.shuffle = None if by_hand else nn.ChannelShuffle(groups)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.shuffle is None:
            n, c, h, w = y.shape
            y = y.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        else:
            y = self.shuffle(y)
        return self.second(y)  # type: ignore[no-any-return]


class PixelShuffle(Block):
    """Channels become places."""

    def __init__(self, channels: int, size: int, *, out: int) -> None:
        super().__init__(out, size * (1 + size % 2))
        self.down = nn.Conv2d(channels, 4 * out, 2, 2) if size % 2 == 0 else nn.Conv2d(channels, 4 * out, 1)
        self.shuffle = nn.PixelShuffle(2)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.shuffle(self.down(x))).relu()  # type: ignore[no-any-return]


class PixelUnshuffle(Block):
    """Places become channels, as in patch merging."""

    def __init__(self, channels: int, size: int, *, out: int) -> None:
        super().__init__(out, size)
        self.up = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.merge = nn.Conv2d(4 * channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(F.pixel_unshuffle(self.up(x).relu(), 2))  # type: ignore[no-any-return]


class PatchMerging(Block):
    """Swin's: four places side by side, a norm over all of them, a linear layer."""

    def __init__(self, channels: int, size: int, *, out: int) -> None:
        super().__init__(out, (size + 1) // 2)
        self.pad = size % 2
        self.norm = nn.LayerNorm(4 * channels)
        self.reduce = nn.Linear(4 * channels, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, self.pad, 0, self.pad)).permute(0, 2, 3, 1)
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.reduce(self.norm(x)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class Gate(Block):
    """One half of the channels gates the other."""

    def __init__(self, channels: int, size: int, *, out: int, kind: str, kernel: int) -> None:
        super().__init__(out, size)
        self.kind, self.half = kind, out
        self.body = nn.Conv2d(channels, 2 * out, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(2 * out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.body(x))
        if self.kind == "glu":
            return F.glu(y, dim=1)
        if self.kind == "chunk":
            a, b = y.chunk(2, dim=1)
        elif self.kind == "split":
            a, b = torch.split(y, y.shape[1] // 2, 1)
        elif self.kind == "numbers":
            a, b = torch.split(y, [self.half, self.half], 1)
        else:
            a, b = y[:, : y.size(1) // 2], y[:, y.size(1) // 2 :]
        return a * b.sigmoid()


class ConvNext(Block):
    """ConvNeXt's block: channels last inside, layer scale."""

    def __init__(self, channels: int, size: int, *, expand: int) -> None:
        super().__init__(channels, size)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.wide, self.narrow = nn.Linear(channels, expand * channels), nn.Linear(expand * channels, channels)
        self.gamma = nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.gamma * self.narrow(F.gelu(self.wide(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


class Position(Block):
    """A learned embedding of every place, added."""

    def __init__(self, channels: int, size: int, *, act: str) -> None:
        super().__init__(channels, size)
        self.embedding = nn.Parameter(torch.randn(1, channels, size, size))
        self.body = conv(channels, channels, 1, act=act)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x + self.embedding)  # type: ignore[no-any-return]


class Shared(Block):
    """One convolution run on two levels, as the heads of detectors are."""

    def __init__(self, channels: int, size: int, *, out: int, act: str) -> None:
        super().__init__(out, size)
        self.head = conv(channels, out, 3, act=act)

    def forward(self, x: Tensor) -> Tensor:
        low = self.head(F.avg_pool2d(x, 2, ceil_mode=True))
        return self.head(x) + F.interpolate(low, size=x.shape[-2:])  # type: ignore[no-any-return]


class Product(Block):
    """Two branches, summed or multiplied."""

    def __init__(self, channels: int, size: int, *, out: int, product: bool, act: str) -> None:
        super().__init__(out, size)
        self.a, self.b = conv(channels, out, 3, act=act), conv(channels, out, 1, norm="none", act=act)
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * self.b(x) if self.product else torch.add(self.a(x), self.b(x))  # type: ignore[no-any-return]


BLOCKS: dict[str, type[Block]] = {
    cls.__name__: cls
    for cls in (
        Plain,
        Residual,
        PreActivation,
        Dense,
        Grouped,
        Depthwise,
        SqueezeExcite,
        Inception,
        Pyramid,
        Up,
        Shuffle,
        PixelShuffle,
        PixelUnshuffle,
        PatchMerging,
        Gate,
        ConvNext,
        Position,
        Shared,
        Product,
    )
}
