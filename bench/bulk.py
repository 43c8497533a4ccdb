"""python -m bench.bulk: the bulk arithmetic on 40 M parameters, beside plain torch, in one run on one machine.

Two questions: how many times faster than the torch expression plus torch.kthvalue are the four ops that make a mask,
and which share of the copy bandwidth does each sweep reach? Copy bandwidth counts the bytes read and the bytes written
by `copy_` between two arenas; a sweep's bytes are what it must read and write at the least (kth_value: one reading of
the scores). Copy, sweep and plain form alternate, and the median of the rounds is shown. Extra memory is how far the
process grows while a mask is made, above inputs, scores and mask. Writes bench/results/bulk.json.
"""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from bench.cases import SPLIT, Case, Workload, cases
from fastalter.profiling.measure import resident_growth
from fastalter.report.environment import gather

RESULT = Path(__file__).parent / "results" / "bulk.json"
MASKING = ("indicator_sums", "alter_score", "kth_value", "make_mask")


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def make_a_mask(of_op: dict[str, Case]) -> None:
    """From gradients to the bit-packed mask: all that the plain form is held against."""
    for op in MASKING:
        of_op[op].run()


def measure(rounds: int, split: tuple[tuple[int, int], ...] = SPLIT) -> dict[str, Any]:
    """Check every case, then time it: see the module's docstring for what the numbers mean."""
    work = Workload(split)
    of_op = cases(work)
    for case in of_op.values():
        case.check()
    extra = resident_growth(lambda: make_a_mask(of_op))
    target = torch.empty_like(work.theta)
    copied = 2 * target.numel() * target.element_size()
    times: dict[str, list[float]] = {name: [] for name in ("copy", "mask", "plain", *of_op)}
    shares: dict[str, list[float]] = {op: [] for op in of_op}

    for _ in range(rounds):
        for op, case in of_op.items():
            copy = min(seconds(lambda: target.copy_(work.score)) for _ in range(2))
            times["copy"].append(copy)
            times[op].append(seconds(case.run))
            shares[op].append((case.bytes / times[op][-1]) / (copied / copy))
        times["mask"].append(seconds(lambda: make_a_mask(of_op)))
        times["plain"].append(seconds(work.plain))
    return {
        "parameters": work.size,
        "rounds": rounds,
        "speedup": median(plain / mask for plain, mask in zip(times["plain"], times["mask"], strict=True)),
        "seconds": {name: median(of) for name, of in times.items()},
        "copy_bandwidth": copied / median(times["copy"]),
        "share_of_copy_bandwidth": {op: median(of) for op, of in shares.items()},
        "extra_arenas": extra / (work.size * work.score.element_size()),
    }


def provenance() -> dict[str, Any]:
    """Where and with what the numbers were made."""
    facts = gather()
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run(
        [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False
    ).stdout
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": facts["devices"]["cpu"],
        "threads": torch.get_num_threads(),
        "system": platform.platform(terse=True),
        "versions": {name: facts["versions"][name] for name in ("fastalter", "python", "torch")},
        "commit": commit + ("+changes" if changed.strip() else ""),
    }


def write_result(out: Path, measured: dict[str, Any]) -> dict[str, Any]:
    """Put the provenance before what was measured and write both as JSON; returns both."""
    result = {"provenance": provenance(), **measured}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    return result


def made_with(made: dict[str, Any]) -> str:
    """A provenance in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return f"{made['device']}; {versions}; commit {made['commit'][:12]}; {made['date']}"


def show(result: dict[str, Any]) -> None:
    """Print the result as a table."""
    table = Table("step", "ms", "of copy bandwidth", title=f"{result['parameters'] / 1e6:.0f} M float32 parameters")
    for op, share in result["share_of_copy_bandwidth"].items():
        table.add_row(op, f"{1e3 * result['seconds'][op]:.1f}", f"{share:.0%}")
    table.add_section()
    table.add_row("copy_", f"{1e3 * result['seconds']['copy']:.1f}", f"{result['copy_bandwidth'] / 1e9:.1f} GB/s")
    table.add_row("the four ops to a mask", f"{1e3 * result['seconds']['mask']:.1f}", "")
    table.add_row("plain torch + kthvalue", f"{1e3 * result['seconds']['plain']:.1f}", "")
    console = Console()
    console.print(table)
    console.print(f"{result['speedup']:.1f}x faster; extra memory {result['extra_arenas']:.2f} arenas")
    console.print(made_with(result["provenance"]))


def main(
    rounds: Annotated[int, typer.Option(help="Rounds; the median is shown.")] = 7,
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = RESULT,
) -> None:
    show(write_result(out, measure(rounds)))


if __name__ == "__main__":
    typer.run(main)
