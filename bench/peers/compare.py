"""python -m bench.peers: an 80 % global mask from given scores, by fastalter and by its peers, side by side.

ResNet-50 (25.5 M weights) and full-size BEVFusion-mit (39.7 M prunable ones), seeded scores, no two of them equal, so
that exactly one set of k weights is the right one. Every contender gets the same tensors and runs in a fresh process:
the median of its rounds, the extra memory of its first run (`bench.peers.worker` says how), and whether it keeps bit
for bit what we keep. A third job rounds the scores to bfloat16, so that thousands tie at the threshold: there the
rules differ, and the table shows who keeps exactly k. A contender that fails shows its error. Writes
bench/results/peers.json when nothing was left out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench.bulk import made_with, write_result
from bench.peers.contenders import CONTENDERS, NOT_COMPARED, PEERS, WHAT
from bench.peers.jobs import FULL, JOBS, RATIO
from fastalter.report.progress import ProgressFunction, progress_bars

ROOT = Path(__file__).parent.parent.parent
RESULT = ROOT / "bench" / "results" / "peers.json"
FASTER, MEMORY = 5.0, 0.25
"""Asked of us: times faster than the fastest peer with the same mask; share of kthvalue's extra memory."""
PATIENCE = 1200
"""Seconds a contender gets."""


def fresh(command: Sequence[str], out: Path) -> dict[str, Any]:
    """Run a command that writes one JSON object to `out`, and return it, or {"error": one line}."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {PATIENCE} s"}
    if done.returncode != 0 or not out.exists():
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return {"error": f"its process ended with status {done.returncode}: {last}"}
    row: dict[str, Any] = json.loads(out.read_text())
    return row


def run_job(job: str, names: Sequence[str], rounds: int, progress: ProgressFunction) -> dict[str, Any]:
    """The rows of one job, contender by contender."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        scores = JOBS[job].scores()
        scores.save(Path(folder) / "scores.safetensors")
        size = scores.layout.size
        del scores
        for done, name in enumerate(names):
            progress(job, done, len(names))
            files = [f"{folder}/scores.safetensors", f"{folder}/{done}.json"]
            command = [sys.executable, "-m", "bench.peers.worker", job, name, *files, "--rounds", str(rounds)]
            rows[name] = fresh(command, Path(files[1]))
        progress(job, len(names), len(names))
    return {"title": JOBS[job].title, "weights": size, "ties": JOBS[job].ties, "rows": rows} | targets(rows)


def targets(rows: dict[str, Any]) -> dict[str, Any]:
    """What is asked of us, measured by the slower and larger of `select` and `Scores.mask`; {} without the rows."""
    ours = [rows[name] for name in ("select", "scores.mask") if "seconds" in rows.get(name, {})]
    peers = {name: rows[name] for name in PEERS if "seconds" in rows.get(name, {})}
    same = {n: r for n, r in peers.items() if r["same_as_ours"] and r["ranks_the_given_scores"]}
    if not ours or not same or "kthvalue" not in peers:
        return {}
    fastest = min(same, key=lambda name: median(same[name]["seconds"]))
    faster = median(same[fastest]["seconds"]) / max(median(row["seconds"]) for row in ours)
    memory = max(row["extra_bytes"] for row in ours) / peers["kthvalue"]["extra_bytes"]
    return {
        "fastest_peer": fastest,
        "faster": faster,
        "memory_of_kthvalue": memory,
        "met": {"faster": faster >= FASTER, "memory": memory <= MEMORY},
    }


def measure(jobs: Sequence[str], names: Sequence[str], rounds: int) -> dict[str, Any]:
    """Every job with every contender."""
    with progress_bars() as progress:
        of_job = {job: run_job(job, names, rounds, progress) for job in jobs}
    return {"ratio": RATIO, "rounds": rounds, "jobs": of_job, "not_compared": NOT_COMPARED}


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """Print a table for each job, and what was asked."""
    console = console or Console(width=None if sys.stdout.isatty() else 120)
    for job in result["jobs"].values():
        title = f"{job['title']}: {job['weights'] / 1e6:.1f} M weights, {result['ratio']:.0%} pruned"
        table = Table("", "ms", "extra MB", "kept - k", "our kept set", title=title)
        for name, row in job["rows"].items():
            table.add_row(WHAT[name], *cells(row), end_section=name == "cat+select")
        console.print(table)
        if job.get("met") and not job["ties"]:
            console.print(
                f"{job['faster']:.1f}x faster than {WHAT[job['fastest_peer']]}, the fastest peer with the same mask "
                f"(asked: {FASTER:.0f}x); {job['memory_of_kthvalue']:.3f} of kthvalue's extra memory "
                f"(asked: at most {MEMORY})"
            )
    for name, why in result["not_compared"].items():
        console.print(f"not compared: {name}, {why}")
    if "provenance" in result:
        console.print(made_with(result["provenance"]))


def cells(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """Milliseconds, extra megabytes, surplus over k, whether the kept set is ours."""
    if "error" in row:
        return "-", "-", "-", row["error"]
    same = "the same" if row["same_as_ours"] else "another"
    note = "" if row["ranks_the_given_scores"] else ", on the ranking it makes"
    surplus = row["kept"] - row["k"]
    return f"{1e3 * median(row['seconds']):.1f}", f"{row['extra_bytes'] / 1e6:.1f}", f"{surplus:+,d}", same + note


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds of each contender; the median is shown.")] = 7,
    only: Annotated[list[str] | None, typer.Option(help=f"These contenders: {', '.join(CONTENDERS)}.")] = None,
    job: Annotated[list[str] | None, typer.Option(help=f"These jobs: {', '.join(JOBS)}.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the JSON goes; without it, a run with --only or --job writes none.")
    ] = None,
) -> None:
    for given, known, option in ((only, CONTENDERS, "--only"), (job, JOBS, "--job")):
        for name in given or []:
            if name not in known:
                raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}", param_hint=option)
    measured = measure(job or FULL, only or list(CONTENDERS), rounds)
    complete = not only and not job
    if out or complete:
        show(write_result(out or RESULT, measured))
    else:
        show(measured)
