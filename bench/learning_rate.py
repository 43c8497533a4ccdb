"""python -m bench.learning_rate: how far does ReRI stand above float32 rounding, at which reactivation learning rate?

The embedded checkpoint on synthetic batches, scored in float32 and in float64. Per rate: ReRI as
a multiple of DeCI (sums, the largest branch and stage), how far the float32 sum is off, and the share of the kept
weights at 80 % that float32 (shared form) has in common with float64 and with its own direct form.
"""

from __future__ import annotations

from typing import Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import fastalter
from bench.scoring import overlap
from fastalter import data
from fastalter.assets import EMBEDDED
from fastalter.checkpoint import load_checkpoint

RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


def score(dtype: torch.dtype, lr: float, batches: int, *, direct: bool = False) -> fastalter.Scores:
    """One run on the embedded checkpoint."""
    model = load_checkpoint(EMBEDDED).model.to(dtype)
    samples = list(data.load("synthetic", config=model.config, batches=batches, batch_size=1))
    reactivation = fastalter.Reactivation(batches, lr)
    return fastalter.score_model(model, samples, reactivation=reactivation, direct=direct, progress=False)


def row(lr: float, batches: int) -> list[str]:
    """The figures of one learning rate."""
    single, double = score(torch.float32, lr, batches), score(torch.float64, lr, batches)
    direct = score(torch.float32, lr, batches, direct=True)
    sums: dict[str, Any] = double.metadata["sums"]
    stages = [(branch, masked) for branch in sums for masked in sums[branch]["reri"]]
    share = max(sums[b]["reri"][m] / sums[b]["deci"] for b, m in stages)
    off = max(abs(single.metadata["sums"][b]["reri"][m] / sums[b]["reri"][m] - 1) for b, m in stages)
    kept = (overlap(single, double, 0.8), overlap(single, direct, 0.8))
    return [f"{lr:g}", f"{share:.2f}", f"{off:.1e}", *(f"{value:.2%}" for value in kept)]


def main(batches: int = 2) -> None:
    table = Table("lr", "ReRI / DeCI", "float32 off by", "kept as float64", "kept as direct")
    for lr in RATES:
        table.add_row(*row(lr, batches))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
