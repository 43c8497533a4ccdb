"""A mask over channel groups: one bit per group, and the mask over weights that it stands for."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastalter.altermoma.arena import Entry, Layout
from fastalter.artifacts import write_artifact
from fastalter.errors import MaskError
from fastalter.fusion.adapt import FUSION
from fastalter.masks.mask import Mask, unpack
from fastalter.structure import store
from fastalter.structure.groups import FIXED, ChannelGroups, stays


class ChannelMask(Mask):
    """Which channel groups stay. mask["set"] is a bool tensor, one entry per group of the set.

    groups  what the bits are over; `layout` is theirs
    """

    unit = "channels"

    def __init__(
        self,
        flat: Tensor,
        groups: ChannelGroups,
        *,
        ratio: float,
        threshold: float = -math.inf,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """flat: bool [G], True where the group stays.

        Raises:
            MaskError: `flat` is not that.
        """
        if flat.dtype != torch.bool or flat.shape != (groups.size,):
            raise MaskError(f"a channel mask is [{groups.size}] torch.bool, not {list(flat.shape)} {flat.dtype}")
        kept = {e.name: int(flat[e.offset : e.offset + e.size].sum()) for e in groups.layout.entries}
        super().__init__(
            _packed(flat), groups.layout, kept, ratio=ratio, threshold=threshold, metadata=dict(metadata or {})
        )
        self.groups = groups

    @property
    def flat(self) -> Tensor:
        """bool [G]: True where the group stays."""
        return unpack(self.bits, 0, (self.layout.size,))

    def weights(self) -> Mask:
        """The same removal as a mask over every parameter that the groups reach, as names and shapes were traced.

        Zero are the rows and biases of the layers that make a removed channel, its entries in norms, and the columns
        that read it. Buffers stay as they are. A parameter that groups of several branches reach counts as fusion.
        """
        kept, branch_of = self.flat, _branches(self.groups)
        names = [name for name in self.groups.axes_of if name not in set(self.groups.buffers)]
        order = {branch: i for i, branch in enumerate([*self.layout.branches, FUSION])}
        entries, parts, offset = [], [], 0
        for name in sorted(names, key=lambda name: order[branch_of[name]]):
            part = self._stays(name, kept)
            entries.append(Entry(name, tuple(part.shape), offset, part.numel(), branch_of[name]))
            parts.append(part.reshape(-1))
            offset += part.numel()
        counts = {entry.name: int(part.sum()) for entry, part in zip(entries, parts, strict=True)}
        bits = _packed(torch.cat(parts))
        return Mask(
            bits, Layout(entries), counts, ratio=self.ratio, threshold=self.threshold, metadata=dict(self.metadata)
        )

    def _stays(self, name: str, kept: Tensor) -> Tensor:
        """bool, shaped like the parameter: which entries stay."""
        shape = self.groups.shapes[name]
        flags = torch.ones(shape, dtype=torch.bool)
        for axis in self.groups.axes_of[name]:
            flags &= stays(axis.groups, kept).view([-1 if d == axis.axis else 1 for d in range(len(shape))])
        return flags

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file: the bits, and the groups they are over (`structure.store`)."""
        tensors, document = store.pack(self.groups)
        write_artifact(path, "mask", {"mask": self.bits, **tensors}, {**self._document(), **document})

    @staticmethod
    def read(
        path: object,
        tensors: Mapping[str, Tensor],
        metadata: dict[str, Any],
        layout: Layout,
        ratio: float,
        threshold: float,
    ) -> ChannelMask:
        """What `Mask.load` leaves to this class: the groups of a mask file. Raises MaskError where they are damaged."""
        groups = store.unpack(path, tensors, metadata.pop(store.KEY), layout)
        flat = unpack(tensors["mask"], 0, (layout.size,))
        return ChannelMask(flat, groups, ratio=ratio, threshold=threshold, metadata=metadata)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> ChannelMask:
        """Read what `save` wrote.

        Raises:
            FastalterError: as `Mask.load`; or a mask over single weights.
        """
        mask = Mask.load(path)
        if not isinstance(mask, ChannelMask):
            raise MaskError(f"{path}: a mask over single weights; give one of scores with granularity='channel'")
        return mask


def _packed(flat: Tensor) -> Tensor:
    """Bits as `ops.make_mask` makes them: least significant first, in whole words of 64."""
    bits = np.zeros(8 * -(-flat.numel() // 64), dtype=np.uint8)
    packed = np.packbits(flat.numpy(), bitorder="little")
    bits[: packed.size] = packed
    return torch.from_numpy(bits)


def _branches(groups: ChannelGroups) -> dict[str, str]:
    """Tensor -> branch of the groups that reach it."""
    owner = np.repeat([e.branch for e in groups.layout.entries], [e.size for e in groups.layout.entries])
    found: dict[str, set[str]] = {}
    for axis in groups.axes:
        reached = np.unique(axis.groups[axis.groups != FIXED].numpy())
        found.setdefault(axis.tensor, set()).update(owner[reached].tolist())
    return {name: branches.pop() if len(branches) == 1 else FUSION for name, branches in found.items()}
