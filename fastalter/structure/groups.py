"""Channel groups: which channels of which tensors must go together.

A group is the smallest set of channels (or one attention head) that can leave a network alone: every row of the layers
that produce it, its entries in the norms it passes, and every column of the layers that consume it. Groups are numbered
in arena order, as weights are: `layout` has one entry per *set*, the groups that come from the same layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from fastalter.altermoma.arena import Layout

FIXED = -1
"""In place of a group's number: a position that always stays."""


@dataclass(frozen=True)
class Axis:
    """One axis of a parameter or buffer, and the group that each of its positions belongs to.

    tensor  its name in the state dict
    axis    0 or more
    groups  int64 [size of the axis], FIXED for positions that stay; one group may hold several positions
    """

    tensor: str
    axis: int
    groups: Tensor


@dataclass(frozen=True)
class Gate:
    """Where channels leave a layer: a factor m there multiplies each channel once, behind the layer's norm.

    dL/dm at m = 1 of position c is the sum of theta * dL/dtheta over position c of `weight`'s `axis` (all its other
    axes summed), plus the same of `bias`. `weight` is a norm's gamma and `bias` its beta where a norm follows; else
    they are the producing layer's own; for attention heads, `weight` is the projection behind them and `axis` its input
    columns.

    layer   path of the module that produces the channels
    groups  int64 [positions], FIXED for channels that belong to no group
    """

    layer: str
    weight: str
    bias: str | None
    axis: int
    groups: Tensor


@dataclass(frozen=True)
class Count:
    """An integer attribute of a module that counts channels, heads or norm groups (num_heads, groups, ...).

    Its value in the compacted model is the number of entries of `groups` that stay (FIXED entries always do).
    """

    module: str
    name: str
    groups: Tensor


@dataclass(frozen=True)
class Kept:
    """Channels of a layer that belong to no group, and why."""

    layer: str
    channels: int
    reason: str


@dataclass
class ChannelGroups:
    """The channel groups of one network.

    layout      one entry per set: name (the first producing layer, ".heads" added for attention), shape (groups,),
                branch; the group's number is its place in this arena
    axes        every axis of every tensor that a group reaches
    gates       where each group's channels leave their layers; a group may have several
    counts      attributes to set in a compacted model
    layer_norms paths of norms over channels that groups leave: they go on dividing by the number of channels they had,
                so that the compacted network computes what the masked one does
    kept        output channels that cannot be pruned, with the reason
    shapes      name -> shape of every tensor that `axes` and `gates` name, as the network was traced
    buffers     those of them that are buffers
    flops       weight's name -> operations per entry of the weight, on the batch that the network was traced with
    group_flops float64 [G]: operations that belong to a group and to no weight (attention's products)
    """

    layout: Layout
    axes: list[Axis]
    gates: list[Gate]
    counts: list[Count] = field(default_factory=list)
    layer_norms: list[str] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    buffers: list[str] = field(default_factory=list)
    flops: dict[str, float] = field(default_factory=dict)
    group_flops: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    @property
    def size(self) -> int:
        """G, the number of groups."""
        return self.layout.size

    @cached_property
    def axes_of(self) -> dict[str, list[Axis]]:
        """Tensor's name -> its axes that groups reach, in order."""
        found: dict[str, list[Axis]] = {}
        for axis in self.axes:
            found.setdefault(axis.tensor, []).append(axis)
        return {name: sorted(axes, key=lambda a: a.axis) for name, axes in found.items()}

    def positions(self, axis: Axis, kept: Tensor) -> Tensor:
        """int64: the positions of an axis that stay; kept: bool [G]."""
        return stays(axis.groups, kept).nonzero().flatten()

    def compacted_shapes(self, kept: Tensor) -> dict[str, tuple[int, ...]]:
        """Name -> shape of `axes_of`'s tensors after compaction; kept: bool [G]."""
        after = {}
        for name, axes in self.axes_of.items():
            shape = list(self.shapes[name])
            for axis in axes:
                shape[axis.axis] = int(stays(axis.groups, kept).sum())
            after[name] = tuple(shape)
        return after


def stays(groups: Tensor, kept: Tensor) -> Tensor:
    """bool, shaped like groups: which positions stay; kept: bool [G]."""
    return torch.cat([kept, kept.new_ones(1)])[groups]  # FIXED is -1, the last
