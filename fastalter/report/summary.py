"""Counts of a mask by branch and by layer: what the tables, the plot and --json show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastalter.masks import Mask


OF_CHANNELS = ("granularity", "budget", "min_keep", "round_to", "raised", "filled", "reached")
"""What a mask's metadata tell of a selection of channels."""


@dataclass(frozen=True)
class BranchCount:
    """One branch: all its parameters, those that may be pruned, those kept."""

    name: str
    parameters: int
    prunable: int
    kept: int

    @property
    def fraction(self) -> float:
        """Kept share of the prunable weights; 1 where nothing may be pruned."""
        return self.kept / self.prunable if self.prunable else 1.0


@dataclass(frozen=True)
class LayerCount:
    """One prunable weight, in network order."""

    name: str
    branch: str
    shape: tuple[int, ...]
    size: int
    kept: int

    @property
    def fraction(self) -> float:
        """Kept share of the layer's weights."""
        return self.kept / self.size


def branch_counts(mask: Mask, branches: Mapping[str, Mapping[str, int]]) -> list[BranchCount]:
    """Counts in network order; `branches` is metadata["branches"] of the scores."""
    kept = mask.kept_by_branch()
    return [
        BranchCount(name, int(count["parameters"]), int(count["prunable"]), int(kept.get(name, 0)))
        for name, count in branches.items()
    ]


def total_count(counts: list[BranchCount]) -> BranchCount:
    """The sum over branches."""
    return BranchCount(
        "total", sum(c.parameters for c in counts), sum(c.prunable for c in counts), sum(c.kept for c in counts)
    )


def layer_counts(mask: Mask) -> list[LayerCount]:
    """One row per prunable weight, in the layout's order."""
    return [
        LayerCount(e.name.removesuffix(".weight"), e.branch, tuple(e.shape), e.size, int(mask.kept[e.name]))
        for e in mask.layout.entries
    ]


def summary(metadata: Mapping[str, Any], mask: Mask, seconds: Mapping[str, float]) -> dict[str, Any]:
    """The object of --json. A threshold that is not finite (nothing kept) is null.

    Of a mask over channels the counts are of channels, and OF_CHANNELS is in it too.
    """
    counts = branch_counts(mask, metadata["branches"])

    def row(count: BranchCount) -> dict[str, int]:
        return {"parameters": count.parameters, "prunable": count.prunable, "kept": count.kept}

    return {
        "method": metadata["method"],
        "model": metadata["model"],
        "data": metadata["data"],
        "synthetic": metadata["synthetic"],
        "seed": metadata["seed"],
        "branches": {count.name: row(count) for count in counts},
        "total": row(total_count(counts)),
        "threshold": float(mask.threshold) if math.isfinite(mask.threshold) else None,
        **({key: mask.metadata.get(key) for key in OF_CHANNELS} if mask.unit == "channels" else {}),
        "seconds": {stage: round(value, 4) for stage, value in seconds.items()},
    }
