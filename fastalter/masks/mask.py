"""A mask: one bit per prunable weight, or per channel group (`structure.mask.ChannelMask`)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastalter.altermoma.arena import Layout
from fastalter.artifacts import read_artifact, write_artifact
from fastalter.errors import MaskError

GROUPS = "groups"
"""In the JSON of a mask file over channels."""


def unpack(bits: Tensor, offset: int, shape: tuple[int, ...]) -> Tensor:
    """Bits offset, offset + 1, ... of packed bits on the CPU as a bool tensor of this shape (row-major)."""
    size, first = math.prod(shape), offset // 8
    window = bits[first : (offset + size + 7) // 8].numpy()
    flags = np.unpackbits(window, bitorder="little")[offset - 8 * first :][:size]
    return torch.from_numpy(flags.astype(bool)).view(shape)


class Mask:
    """Which weights stay. mask["name"] is a bool tensor shaped like the weight.

    bits       uint8 on the CPU; weight i of the arena is bit i % 8 (least significant first) of byte i // 8
    kept       weight name -> how many of its entries stay
    threshold  tau: the lowest kept score (+inf where nothing is kept)
    metadata   what made it: method, model, data, synthetic, seed, and checkpoint where the scores know it
    unit       what the bits are of, in the plural
    """

    unit = "weights"

    def __init__(
        self,
        bits: Tensor,
        layout: Layout,
        kept: dict[str, int],
        *,
        ratio: float,
        threshold: float,
        metadata: dict[str, Any],
    ) -> None:
        self.bits = bits
        self.layout = layout
        self.kept = kept
        self.ratio = ratio
        self.threshold = threshold
        self.metadata = metadata

    def __getitem__(self, name: str) -> Tensor:
        entry = self.layout[name]
        return unpack(self.bits, entry.offset, entry.shape)

    def __iter__(self) -> Iterator[str]:
        return (entry.name for entry in self.layout.entries)

    def __len__(self) -> int:
        return len(self.layout.entries)

    def __repr__(self) -> str:
        kept, size = self.kept_total, self.layout.size
        return f"{type(self).__name__}({kept:,} of {size:,} {self.unit} kept, {1 - kept / max(size, 1):.1%} pruned)"

    @property
    def kept_total(self) -> int:
        """How many weights stay in all."""
        return sum(self.kept.values())

    def kept_by_branch(self) -> dict[str, int]:
        """Branch -> how many of its weights stay."""
        totals = dict.fromkeys(self.layout.branches, 0)
        for entry in self.layout.entries:
            totals[entry.branch] += self.kept[entry.name]
        return totals

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a bit-packed safetensors file: N/8 bytes and a header; whole or not at all."""
        write_artifact(path, "mask", {"mask": self.bits}, self._document())

    def weights(self) -> Mask:
        """The mask over single weights that this one stands for: itself."""
        return self

    def _document(self) -> dict[str, Any]:
        facts = {"ratio": self.ratio, "threshold": repr(self.threshold), "kept": list(self.kept.values())}
        return {**self.metadata, **facts, "layout": self.layout.to_json()}

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Mask:
        """Read what `save` wrote; a `ChannelMask` where it is one over channels.

        Raises:
            FastalterError: no such file, not a mask file, or its bits do not fit its layout and counts.
        """
        tensors, metadata = read_artifact(path, "mask")
        try:
            layout = Layout.from_json(metadata.pop("layout"))
            ratio, threshold = float(metadata.pop("ratio")), float(metadata.pop("threshold"))
            counts = [int(count) for count in metadata.pop("kept")]
            for entry in layout.entries:
                if any(length < 0 for length in entry.shape):
                    raise ValueError(f"{entry.name} has a negative size")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise MaskError(
                f"{path}: not a whole mask file ({type(error).__name__}: {error}); make it again"
            ) from error
        bits = tensors.get("mask")
        if bits is None or bits.dtype != torch.uint8 or bits.dim() != 1 or bits.numel() * 8 < layout.size:
            raise MaskError(f"{path}: the mask does not fit its layout of {layout.size:,} weights; make it again")
        kept = {entry.name: int(unpack(bits, entry.offset, entry.shape).sum()) for entry in layout.entries}
        if list(kept.values()) != counts:
            raise MaskError(f"{path}: its bits are not those that its counts tell of; it is damaged, make it again")
        if GROUPS in metadata:
            return _over_channels(path, tensors, metadata, layout, ratio, threshold)
        return Mask(bits, layout, kept, ratio=ratio, threshold=threshold, metadata=metadata)


def _over_channels(
    path: object, tensors: dict[str, Tensor], metadata: dict[str, Any], layout: Layout, ratio: float, threshold: float
) -> Mask:
    """The one place where masks reach up: what is built on them is not to be known before a file asks for it."""
    from fastalter.structure.mask import ChannelMask

    return ChannelMask.read(path, tensors, metadata, layout, ratio, threshold)


def emptied(mask: Mask) -> list[str]:
    """Names of the weights that keep not one entry, in the mask's order."""
    return [entry.name for entry in mask.layout.entries if entry.size and not mask.kept[entry.name]]
