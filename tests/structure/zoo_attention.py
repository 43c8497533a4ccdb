"""Blocks of the zoo that work on tokens: attention by hand and torch's, transformer layers, MLPs.

Each takes a map and gives one, as the blocks of `zoo_blocks` do, and flattens it to tokens [N, T, C] inside.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.structure.zoo_blocks import ACTIVATIONS, Block


class Tokens(Block):
    """A block whose work is `mix`, on tokens."""

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        tokens = self.mix(x.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).unflatten(2, (h, w))

    def mix(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Attention(Tokens):
    """Self-attention as vision transformers write it: one linear layer for queries, keys and values."""

    def __init__(self, channels: int, size: int, *, heads: int, head_dim: int, fused: bool, bias: bool) -> None:
        super().__init__(channels, size)
        self.num_heads, self.head_dim, self.scale = heads, head_dim, head_dim**-0.5
        self.fused = fused
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * heads * head_dim, bias=bias)
        self.proj = nn.Linear(heads * head_dim, channels)

    def mix(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return x + self.proj(y.transpose(1, 2).reshape(n, t, self.num_heads * self.head_dim))  # type: ignore[no-any-return]


class SplitAttention(Tokens):
    """The same with a layer each for queries, keys and values, and heads taken apart by view."""

    def __init__(self, channels: int, size: int, *, heads: int, head_dim: int) -> None:
        super().__init__(channels, size)
        self.num_heads, self.head_dim = heads, head_dim
        inner = heads * head_dim
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k, self.to_v = nn.Linear(channels, inner), nn.Linear(channels, inner)
        self.out = nn.Linear(inner, channels)

    def mix(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (
            layer(x).view(n, t, self.num_heads, self.head_dim).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        scores = torch.matmul(q, k.transpose(2, 3)) / self.head_dim**0.5
        y = torch.matmul(F.softmax(scores, -1), v).transpose(1, 2).contiguous()
        return x + self.out(y.view(n, t, -1))  # type: ignore[no-any-return]


class TorchAttention(Tokens):
    """torch's module, on itself or on a projection of another width."""

    def __init__(self, channels: int, size: int, *, heads: int, other: int, bias: bool) -> None:
        super().__init__(channels, size)
        self.into = nn.Linear(channels, 4 * heads)
        self.memory = nn.Linear(channels, other) if other else None
        self.attention = nn.MultiheadAttention(
            4 * heads, heads, bias=bias, batch_first=True, kdim=other or None, vdim=other or None
        )
        self.norm = nn.LayerNorm(4 * heads)
        self.out = nn.Linear(4 * heads, channels)

    def mix(self, x: Tensor) -> Tensor:
        y = self.into(x)
        memory = y if self.memory is None else self.memory(x)
        y = self.norm(y + self.attention(y, memory, memory, need_weights=False)[0])
        return x + self.out(y)  # type: ignore[no-any-return]


class Encoder(Tokens):
    """torch's transformer layer."""

    def __init__(self, channels: int, size: int, *, heads: int, hidden: int, norm_first: bool, gelu: bool) -> None:
        super().__init__(channels, size)
        self.into = nn.Linear(channels, 4 * heads)
        self.layer = nn.TransformerEncoderLayer(
            4 * heads,
            heads,
            hidden,
            dropout=0.1,
            activation="gelu" if gelu else "relu",
            batch_first=True,
            norm_first=norm_first,
        )
        self.out = nn.Linear(4 * heads, channels)

    def mix(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.into(x)))  # type: ignore[no-any-return]


class Mlp(Tokens):
    """A norm, two linear layers, learned positions, layer scale (small, as it begins)."""

    def __init__(self, channels: int, size: int, *, hidden: int, positions: bool, scale: float, act: str) -> None:
        super().__init__(channels, size)
        self.gamma = nn.Parameter(torch.full((channels,), scale)) if scale else None
        self.positions = nn.Parameter(torch.randn(1, size * size, channels)) if positions else None
        self.norm = nn.LayerNorm(channels)
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.act, self.drop = ACTIVATIONS[act](), nn.Dropout(0.1)

    def mix(self, x: Tensor) -> Tensor:
        if self.positions is not None:
            x = x + self.positions
        y = self.drop(self.fc2(self.drop(self.act(self.fc1(self.norm(x))))))
        return x + (y if self.gamma is None else y * self.gamma)  # type: ignore[no-any-return]


class GatedMlp(Tokens):
    """SwiGLU: one linear layer cut in two, RMS norm."""

    def __init__(self, channels: int, size: int, *, hidden: int) -> None:
        super().__init__(channels, size)
        self.norm = nn.RMSNorm(channels)
        self.gate, self.out = nn.Linear(channels, 2 * hidden, bias=False), nn.Linear(hidden, channels, bias=False)

    def mix(self, x: Tensor) -> Tensor:
        gate, value = self.gate(self.norm(x)).chunk(2, dim=-1)
        return x + self.out(F.silu(gate) * value)  # type: ignore[no-any-return]


class Summary(Tokens):
    """A learned token in front, as of a classifier, that every place then reads."""

    def __init__(self, channels: int, size: int, *, heads: int) -> None:
        super().__init__(channels, size)
        self.token = nn.Parameter(torch.randn(1, 1, channels))
        self.mixed = SplitAttention(channels, size, heads=heads, head_dim=4)
        self.read = nn.Linear(channels, channels)

    def mix(self, x: Tensor) -> Tensor:
        y = self.mixed.mix(torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1))
        return y[:, 1:] * self.read(y[:, :1]).sigmoid()  # type: ignore[no-any-return]


TOKEN_BLOCKS: dict[str, type[Block]] = {
    cls.__name__: cls for cls in (Attention, SplitAttention, TorchAttention, Encoder, Mlp, GatedMlp, Summary)
}
