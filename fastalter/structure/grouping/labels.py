"""Channel labels: which channel each element of an activation belongs to, and which labels mean one channel.

Labels are an int32 tensor shaped like the activation: 0 belongs to no channel, and the sign carries one more bit: a
negative label is *fresh*, straight from the layer that made it, moved at most. Along axes where nothing changes (batch,
space) they are expanded, so a label tensor takes as much memory as it has channels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NOTHING = 0
_NEVER = torch.iinfo(torch.int32).max


def strip(labels: Tensor) -> Tensor:
    """One of each along the axes where the labels are expanded; as many dimensions as before."""
    for dim, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if size > 1 and stride == 0:
            labels = labels.narrow(dim, 0, 1)
    return labels


def rows_along(labels: Tensor, dim: int) -> Tensor:
    """[size of dim, everything else], without signs; [1, ...] where the labels are one and the same along it."""
    moved = strip(labels).abs().movedim(dim, 0)
    return moved.reshape(moved.shape[0], -1)


def along(vector: Tensor, dim: int, shape: torch.Size) -> Tensor:
    """Labels of this shape that are `vector` along `dim` and the same everywhere else."""
    view = [1] * len(shape)
    view[dim] = len(vector)
    return vector.view(view).expand(shape)


def nothing(shape: torch.Size) -> Tensor:
    """Labels of a tensor without channels."""
    return torch.zeros((), dtype=torch.int32).expand(shape)


def common_shape(*several: Tensor) -> torch.Size:
    """The shape that tensors broadcast to."""
    shape: torch.Size = torch.broadcast_shapes(*(x.shape for x in several))  # type: ignore[no-untyped-call]
    return shape


def simplified(labels: Tensor) -> Tensor:
    """The same labels, expanded along every axis where they repeat."""
    found = strip(labels)
    for dim, size in enumerate(found.shape):
        if size > 1 and bool((found == found.narrow(dim, 0, 1)).all()):
            found = found.narrow(dim, 0, 1)
    return found.expand(labels.shape)


class Classes:
    """Labels that mean one channel: a union-find over 1, 2, ..."""

    def __init__(self) -> None:
        self._parent: NDArray[np.int32] = np.zeros(1024, dtype=np.int32)
        self.count = 1  # label 0 is taken
        self._roots: NDArray[np.int32] | None = None

    def new(self, count: int) -> Tensor:
        """int32 [count]: labels that nothing has yet."""
        first, self.count = self.count, self.count + count
        while self.count > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros_like(self._parent)])
        self._parent[first : self.count] = np.arange(first, self.count)
        self._roots = None
        return torch.arange(first, self.count, dtype=torch.int32)

    def unite(self, left: Tensor, right: Tensor) -> None:
        """Labels at the same place of two tensors of one shape mean one channel; those that are 0 mean nothing."""
        pairs = torch.stack([left.abs().flatten(), right.abs().flatten()], 1)
        pairs = pairs[(pairs[:, 0] != pairs[:, 1]) & (pairs != NOTHING).all(1)]
        if not len(pairs):
            return
        self._roots = None
        for a, b in torch.unique(pairs, dim=0).tolist():
            low, high = sorted((self._find(a), self._find(b)))
            self._parent[high] = low

    def _find(self, label: int) -> int:
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = int(parent[label])
        return label

    def roots(self) -> NDArray[np.int32]:
        """int32 [labels]: label -> the one that stands for its class."""
        if self._roots is None:
            roots = self._parent[: self.count]
            while not np.array_equal(above := roots[roots], roots):
                roots = above
            self._roots = roots.copy()
        return self._roots

    def of(self, labels: Tensor) -> Tensor:
        """The class of every label, shaped like them, without signs."""
        return torch.from_numpy(self.roots())[labels.abs().long()]

    def varies(self, labels: Tensor, dim: int) -> bool:
        """Whether there is more than one class along a dimension; what belongs to no channel does not count."""
        short = strip(labels)
        if short.shape[dim] <= 1:
            return False
        classes = self.of(short)
        lowest = torch.where(classes == NOTHING, _NEVER, classes).amin(dim)
        return bool((classes.amax(dim) > lowest).any())

    def channels(self, labels: Tensor, dim: int) -> Tensor:
        """int32 [size of dim]: the label of each position of an axis.

        Whatever else lies at that position, in other samples, places or tokens, goes with it from now on: a layer that
        works on the axis uses one slice of its weight for all of it. A label stays fresh where it is alone.
        """
        size = labels.shape[dim]
        rows = strip(labels).movedim(dim, 0)
        rows = rows.reshape(rows.shape[0], -1)
        highest = rows.abs().amax(1)
        self.unite(highest[:, None].expand_as(rows), rows)
        fresh = (rows == -highest[:, None]).all(1) & (highest != NOTHING)
        return torch.where(fresh, -highest, highest).expand(size)
