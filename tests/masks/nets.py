"""A net with layers of every kind, and masks for it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

import fastalter
from fastalter.altermoma import Entry, Layout
from fastalter.masks import select


class Net(nn.Module):
    """Layers of every kind: those that can mask on load and those that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, 2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.reflect = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.reflect(self.grouped(self.plain(x).relu())))
        tokens = y.flatten(2).transpose(1, 2)
        return self.linear(self.attention(tokens, tokens, tokens)[0])  # type: ignore[no-any-return]


NAMES = ("plain.weight", "grouped.weight", "reflect.weight", "attention.in_proj_weight", "linear.weight")


def mask_of(model: nn.Module, names: Sequence[str], ratio: float = 0.6, seed: int = 0) -> fastalter.Mask:
    """A random mask over these weights."""
    parameters, entries, offset = dict(model.named_parameters()), [], 0
    for name in names:
        shape = tuple(parameters[name].shape)
        entries.append(Entry(name, shape, offset, parameters[name].numel(), "fusion"))
        offset += parameters[name].numel()
    score = torch.rand(offset, generator=torch.Generator().manual_seed(seed))
    return select(score, Layout(entries), round((1 - ratio) * offset), ratio=ratio)


def net_and_mask(ratio: float = 0.6, seed: int = 0) -> tuple[Net, fastalter.Mask, torch.Tensor]:
    torch.manual_seed(0)
    net = Net().eval()
    return net, mask_of(net, NAMES, ratio, seed), torch.randn(2, 3, 9, 8)


def zeroed_copy(net: Net, mask: fastalter.Mask) -> Net:
    other = copy.deepcopy(net)
    for name, parameter in other.named_parameters():
        if name in NAMES:
            parameter.data *= mask[name]
    return other
