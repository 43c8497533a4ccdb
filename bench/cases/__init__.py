"""What the benchmarks time and the tests run: a case per op, checked against the reference before it is timed."""

from __future__ import annotations

import torch

from bench.cases import compaction, fusing, layers, scoring
from bench.cases.case import Case
from bench.cases.scoring import SPLIT, Workload, cases, scaled_split
from fastalter.ops import backends

__all__ = ["DTYPES", "SPLIT", "Case", "Workload", "cases", "every_case", "scaled_split", "takes"]

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def takes(op: str, dtype: torch.dtype) -> bool:
    """Whether the op has a case of this dtype: arenas are float32 or float64, 2:4 compression has no float64."""
    if op in backends.SCORING:
        return dtype in (torch.float32, torch.float64)
    return op != "compress_nm" or dtype != torch.float64


def every_case(dtype: torch.dtype = torch.float32, device: str = "cpu", *, full: bool = False) -> dict[str, Case]:
    """The case of every op that takes this dtype, on small or on full-size workloads."""
    found: dict[str, Case] = {}
    if takes("alter_score", dtype):
        found |= scoring.cases(Workload(scaled_split(40_000_000 if full else 100_000), dtype, device))
    found |= fusing.cases(fusing.Fuser(fusing.FULL if full else fusing.SMALL, dtype, device))
    found |= layers.cases(layers.Layers(layers.FULL if full else layers.SMALL, dtype, device))
    found |= compaction.cases(compaction.Compaction(compaction.FULL if full else compaction.SMALL, dtype, device))
    return found
