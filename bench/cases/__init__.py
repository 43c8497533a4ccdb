"""What the benchmarks time and the tests run: a case per op, checked against the reference before it is timed."""

from __future__ import annotations

import torch

from bench.cases import compaction, fusing, layers, scoring
from bench.cases.case import Case
from bench.cases.scoring import SPLIT, Workload, cases, scaled_split

__all__ = ["SPLIT", "Case", "Workload", "cases", "every_case", "scaled_split"]


def every_case(dtype: torch.dtype = torch.float32, device: str = "cpu", *, full: bool = False) -> dict[str, Case]:
    """The case of every op that takes this dtype, on small or on full-size workloads. Arenas are float32 or float64."""
    found: dict[str, Case] = {}
    if dtype in (torch.float32, torch.float64):
        found |= scoring.cases(Workload(scaled_split(40_000_000 if full else 100_000), dtype, device))
    found |= fusing.cases(fusing.Fuser(fusing.FULL if full else fusing.SMALL, dtype, device))
    found |= layers.cases(layers.Layers(layers.FULL if full else layers.SMALL, dtype, device))
    found |= compaction.cases(compaction.Compaction(compaction.FULL if full else compaction.SMALL, dtype, device))
    return found
