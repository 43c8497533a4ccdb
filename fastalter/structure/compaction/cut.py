"""How tensors shrink: the positions of their axes that stay, cut for many tensors at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastalter import ops
from fastalter.ops.checks import FLOATS

OP_AXES = 2
"""As many axes as `ops.compact_channels` takes of one tensor."""


@dataclass(frozen=True)
class Cut:
    """How one tensor shrinks.

    shape  before
    kept   axis -> int64 positions that stay, ascending; an axis that is not here stays whole
    zero   axis -> int64 positions, of the tensor before, that stay with zeros in them: what a network needs to have
           at least one channel in a layer that the mask leaves none
    """

    shape: tuple[int, ...]
    kept: dict[int, Tensor]
    zero: dict[int, Tensor] = field(default_factory=dict)

    @property
    def shape_after(self) -> tuple[int, ...]:
        """The tensor's shape once cut."""
        return tuple(len(self.kept[axis]) if axis in self.kept else size for axis, size in enumerate(self.shape))

    def then(self, later: Cut) -> Cut:
        """This cut and, of what it leaves, a later one, as one cut of the tensor before both."""
        kept, zero = dict(self.kept), dict(self.zero)
        for axis, index in later.kept.items():
            kept[axis] = self._before(axis, index)
        for axis, index in later.zero.items():
            both = [self._before(axis, index), *([zero[axis]] if axis in zero else [])]
            zero[axis] = torch.unique(torch.cat(both))
        staying = {
            axis: index[torch.isin(index, kept[axis])] if axis in kept else index for axis, index in zero.items()
        }
        return Cut(self.shape, kept, {axis: index for axis, index in staying.items() if len(index)})

    def _before(self, axis: int, index: Tensor) -> Tensor:
        """Where positions of the cut tensor were before."""
        return self.kept[axis][index] if axis in self.kept else index

    def of_shape(self, shape: Sequence[int]) -> Cut | None:
        """The same cut for a tensor that goes along with this one: each axis as long as here, or 1 and then whole.

        None where the shape is another. (Optimizer state is shaped like its parameter, or reduced over some axes.)
        """
        if len(shape) != len(self.shape) or any(n not in (1, own) for n, own in zip(shape, self.shape, strict=True)):
            return None
        along = {axis for axis, size in enumerate(shape) if size == self.shape[axis]}
        kept = {axis: index for axis, index in self.kept.items() if axis in along}
        return Cut(tuple(shape), kept, {axis: index for axis, index in self.zero.items() if axis in along})


@torch.no_grad()
def cut_all(tensors: Sequence[Tensor], cuts: Sequence[Cut]) -> list[Tensor]:
    """New tensors, cut: one call of `ops.compact_channels` per device for all that are floating.

    What the op does not take (integers, a third axis, the meta device) goes through index_select. Channels-last
    tensors stay channels-last.
    """
    indices = _Indices()
    found: dict[int, Tensor] = {}
    by_device: dict[torch.device, list[int]] = {}
    for i, tensor in enumerate(tensors):
        if tensor.device.type != "meta" and tensor.dtype in FLOATS and cuts[i].kept:
            by_device.setdefault(tensor.device, []).append(i)
        else:
            found[i] = tensor.detach().clone(memory_format=torch.contiguous_format)
    for device, members in by_device.items():
        of_op = [{axis: indices.on(device, cuts[i].kept[axis]) for axis in _op_axes(cuts[i])} for i in members]
        found.update(zip(members, ops.compact_channels([tensors[i].detach() for i in members], of_op), strict=True))
    done = {i: _op_axes(cuts[i]) for members in by_device.values() for i in members}
    return [_finished(found[i], tensors[i], cuts[i], done.get(i, []), indices) for i in range(len(tensors))]


def _op_axes(cut: Cut) -> list[int]:
    return list(cut.kept)[:OP_AXES]


def _finished(small: Tensor, big: Tensor, cut: Cut, done: Sequence[int], indices: _Indices) -> Tensor:
    """What the op has left to do."""
    for axis, index in cut.kept.items():
        if axis not in done:
            small = small.index_select(axis, indices.on(big.device, index))
    for axis, positions in cut.zero.items():
        left = cut.kept.get(axis)
        places = positions if left is None else torch.searchsorted(left, positions)
        small.index_fill_(axis, places.to(big.device), 0)
    channels_last = big.dim() == 4 and not big.is_contiguous() and big.is_contiguous(memory_format=torch.channels_last)
    return small.contiguous(memory_format=torch.channels_last) if channels_last else small


class _Indices:
    """Indices on the devices where they are needed, each copied there once: many tensors share them."""

    def __init__(self) -> None:
        self._copies: dict[tuple[torch.device, int], Tensor] = {}

    def on(self, device: torch.device, index: Tensor) -> Tensor:
        return self._copies.setdefault((device, id(index)), index.to(device))
