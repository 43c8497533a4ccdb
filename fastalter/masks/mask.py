"""A mask: one bit per prunable weight."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastalter.altermoma.arena import Layout
from fastalter.artifacts import read_artifact, write_artifact
from fastalter.errors import MaskError


class Mask:
    """Which weights stay. mask["name"] is a bool tensor shaped like the weight.

    bits       uint8 on the CPU; weight i of the arena is bit i % 8 (least significant first) of byte i // 8
    kept       weight name -> how many of its entries stay
    threshold  tau: the lowest kept score (+inf where nothing is kept)
    """

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
        first = entry.offset // 8
        window = self.bits[first : (entry.offset + entry.size + 7) // 8].numpy()
        flags = np.unpackbits(window, bitorder="little")[entry.offset - 8 * first :][: entry.size]
        return torch.from_numpy(flags.astype(bool)).view(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return (entry.name for entry in self.layout.entries)

    def __len__(self) -> int:
        return len(self.layout.entries)

    def __repr__(self) -> str:
        kept, size = self.kept_total, self.layout.size
        return f"Mask({kept:,} of {size:,} weights kept, {1 - kept / max(size, 1):.1%} pruned)"

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
        facts = {"ratio": self.ratio, "threshold": repr(self.threshold), "kept": list(self.kept.values())}
        write_artifact(path, "mask", {"mask": self.bits}, {**self.metadata, **facts, "layout": self.layout.to_json()})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Mask:
        """Read what `save` wrote.

        Raises:
            FastalterError: no such file, not a mask file, or its bits do not fit its layout.
        """
        tensors, metadata = read_artifact(path, "mask")
        layout = Layout.from_json(metadata.pop("layout"))
        counts, ratio, threshold = metadata.pop("kept"), metadata.pop("ratio"), float(metadata.pop("threshold"))
        bits = tensors.get("mask")
        if (
            bits is None
            or bits.dtype != torch.uint8
            or bits.numel() * 8 < layout.size
            or len(counts) != len(layout.entries)
        ):
            raise MaskError(f"{path}: the mask does not fit its layout of {layout.size:,} weights; make it again")
        kept = {entry.name: int(count) for entry, count in zip(layout.entries, counts, strict=True)}
        return Mask(bits, layout, kept, ratio=ratio, threshold=threshold, metadata=metadata)
