"""Scores: one number per prunable weight, where they come from, and the mask they give."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastalter.altermoma.arena import Layout
from fastalter.artifacts import read_artifact, write_artifact
from fastalter.errors import MaskError
from fastalter.masks import Mask, keep_count, select


class Scores:
    """Scores of every prunable weight, in arena order.

    scores["name"] is a tensor shaped like the weight; iterating gives the names. `flat` is all of them, [N].
    `metadata` says what made them: method, model, data, seed, settings, branches, seconds per stage, warnings.
    """

    def __init__(self, flat: Tensor, layout: Layout, metadata: dict[str, Any], histogram: Tensor | None = None) -> None:
        self.flat = flat
        self.layout = layout
        self.metadata = metadata
        self._histogram = histogram

    def __getitem__(self, name: str) -> Tensor:
        entry = self.layout[name]
        return self.flat[entry.offset : entry.offset + entry.size].view(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return (entry.name for entry in self.layout.entries)

    def __len__(self) -> int:
        return len(self.layout.entries)

    def __repr__(self) -> str:
        branches = ", ".join(f"{b} {self.branch(b).numel():,}" for b in self.layout.branches)
        return f"Scores({self.metadata.get('method', '?')}: {self.layout.size:,} weights; {branches})"

    def branch(self, name: str) -> Tensor:
        """The scores of a branch, 1-D."""
        return self.flat[self.layout.range(name)]

    def mask(self, ratio: float = 0.8) -> Mask:
        """Prune the lowest-scored `ratio` of all weights by one global threshold.

        Exactly round((1 - ratio) * N) weights are kept; of those that tie at the threshold, the first in arena order.

        Raises:
            MaskError: the ratio is not in [0, 1), or the scores hold NaN.
        """
        keep = keep_count(self.layout.size, ratio)
        made_from: dict[str, Any] = {
            k: self.metadata[k] for k in ("method", "model", "data", "synthetic", "seed") if k in self.metadata
        }
        return select(self.flat, self.layout, keep, ratio=ratio, metadata=made_from, histogram=self._histogram)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file with one tensor per weight; whole or not at all."""
        tensors = {name: self[name] for name in self}
        write_artifact(path, "scores", tensors, {**self.metadata, "layout": self.layout.to_json()})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Scores:
        """Read what `save` wrote.

        Raises:
            FastalterError: no such file, not a score file, or its tensors do not fit its layout.
        """
        tensors, metadata = read_artifact(path, "scores")
        layout = Layout.from_json(metadata.pop("layout"))
        for entry in layout.entries:
            if entry.name not in tensors or tuple(tensors[entry.name].shape) != entry.shape:
                raise MaskError(f"{path}: scores of {entry.name} are missing or misshapen; score the model again")
        flat = torch.cat([tensors[entry.name].reshape(-1) for entry in layout.entries])
        return Scores(flat, layout, metadata)
