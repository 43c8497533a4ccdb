"""python -m bench.table: every op beside its reference and beside what a user would call, in one run on this machine.

Full-size workloads (BEVFusion's shapes). Each case is checked against the reference before it is timed; op, reference
and peers alternate, and the median of the rounds is shown. "of copy" is the op's least bytes over its time, as a share
of what `copy_` reaches here. Writes bench/results/ops.json.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from bench.bulk import made_with, seconds, write_result
from bench.cases import Case, every_case
from fastalter.ops import backends

RESULT = Path(__file__).parent / "results" / "ops.json"
Timer = Callable[[Callable[[], object]], float]
"""Seconds of one call."""


def measure(cases: dict[str, Case], device: str, rounds: int, timer: Timer = seconds) -> dict[str, Any]:
    """Per op: seconds of the op, of its reference and of its peers (medians), least bytes, who serves it."""
    rows: dict[str, Any] = {}
    for op, case in cases.items():
        case.check()
        runs = {"run": case.run, "reference": case.reference, **{f"peer {n}": run for n, run in case.peers.items()}}
        times: dict[str, list[float]] = {name: [] for name, run in runs.items() if run is not None}
        for _ in range(rounds):
            for name in times:
                times[name].append(timer(runs[name]))  # type: ignore[arg-type]
        rows[op] = {
            "served by": backends.serving(op, device).name,
            "bytes": case.bytes,
            "seconds": {name: median(of) for name, of in times.items()},
        }
    return rows


def copy_bandwidth(device: str, timer: Timer = seconds, size: int = 40_000_000) -> float:
    """Bytes read and written a second by `copy_` between two float32 arenas."""
    source, target = torch.ones(size, device=device), torch.zeros(size, device=device)
    return 8 * size / median(timer(lambda: target.copy_(source)) for _ in range(7))


def show(result: dict[str, Any]) -> None:
    """Print the result as a table."""
    table = Table("op", "served by", "ms", "of copy", "reference", "peer", title=f"{result['dtype']}, full size")
    for op, row in result["ops"].items():
        took = row["seconds"]["run"]
        share = f"{row['bytes'] / took / result['copy_bandwidth']:.0%}" if row["bytes"] else "-"
        others = {name: f"{value / took:.1f}x" for name, value in row["seconds"].items() if name != "run"}
        peers = ", ".join(f"{name.removeprefix('peer ')} {x}" for name, x in others.items() if name != "reference")
        table.add_row(op, row["served by"], f"{1e3 * took:.2f}", share, others.get("reference", "-"), peers or "-")
    console = Console(width=130)
    console.print(table)
    console.print(f"copy_ {result['copy_bandwidth'] / 1e9:.1f} GB/s; others: how many times our time they take")
    console.print(made_with(result["provenance"]))


def main(
    rounds: Annotated[int, typer.Option(help="Rounds; the median is shown.")] = 5,
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = RESULT,
) -> None:
    cases = every_case(full=True)
    measured = {"dtype": "float32", "copy_bandwidth": copy_bandwidth("cpu"), "ops": measure(cases, "cpu", rounds)}
    show(write_result(out, measured))


if __name__ == "__main__":
    typer.run(main)
