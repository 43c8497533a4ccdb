"""python -m bench.scoring: a whole scoring run, the shared form beside the plain one (direct=True), on a real frame.

Both forms score full-size BEVFusion-mit with seeded random weights at a quarter of the full resolution (images 128x352,
a map of 90x90), on B distinct augmented views of the frame. They alternate within one process; the ratio of each round
is shown and the median counts. `--full` runs the shared form once at full size instead. Results go to
bench/results/scoring.json, under "quarter" and "full".
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

import fastalter
from bench.bulk import provenance
from fastalter import data, models

RESULT = Path(__file__).parent / "results" / "scoring.json"
NAME = "bevfusion-mit-swint-voxelnet"


def one_run(model: torch.nn.Module, batches: Any, count: int, reri_data: str, *, direct: bool) -> dict[str, Any]:
    """Score once: seconds in all, per stage and outside the network, and the scores."""
    began = time.perf_counter()
    scores = fastalter.score_model(
        model,
        batches,
        reactivation=fastalter.Reactivation(batches=count),
        reri_data=reri_data,  # type: ignore[arg-type]
        direct=direct,
        progress=False,
    )
    seconds = time.perf_counter() - began
    facts = scores.metadata
    return {
        "seconds": seconds,
        "outside_network": 1 - facts["network_seconds"] / seconds,
        "stages": facts["seconds"],
        "sums": facts["sums"],
        "scores": scores,
    }


def overlap(one: fastalter.Scores, other: fastalter.Scores, ratio: float) -> float:
    """Share of the kept weights that two runs have in common."""
    first, second = one.mask(ratio), other.mask(ratio)
    return sum(int((first[name] & second[name]).sum()) for name in first) / first.kept_total


def quarter(frames: str, rounds: int, count: int, batch_size: int, reri_data: str) -> dict[str, Any]:
    """The two forms side by side."""
    config = models.config_of(NAME).at_quarter_resolution()
    model = models.build(config)
    batches = list(data.load(frames, config=config, batches=count, batch_size=batch_size))
    results = []
    for _ in range(rounds):
        shared = one_run(model, batches, count, reri_data, direct=False)
        plain = one_run(model, batches, count, reri_data, direct=True)
        results.append((shared, plain))
    shared, plain = results[-1]
    return {
        "B": count,
        "batch_size": batch_size,
        "reri_data": reri_data,
        "rounds": rounds,
        "ratios": [a["seconds"] / b["seconds"] for a, b in results],
        "ratio": median(a["seconds"] / b["seconds"] for a, b in results),
        "shared_seconds": median(a["seconds"] for a, _ in results),
        "direct_seconds": median(b["seconds"] for _, b in results),
        "outside_network": median(a["outside_network"] for a, _ in results),
        "stages": shared["stages"],
        "kept_overlap_at_80": overlap(shared["scores"], plain["scores"], 0.8),
        "sums": shared["sums"],
    }


def full(frames: str, count: int, batch_size: int, reri_data: str) -> dict[str, Any]:
    """One full-size run."""
    config = models.config_of(NAME)
    batches = data.load(frames, config=config, batches=count, batch_size=batch_size)
    run = one_run(models.build(config), batches, count, reri_data, direct=False)
    run.pop("scores")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"B": count, "batch_size": batch_size, "reri_data": reri_data, "peak_bytes": peak, **run}


def main(
    frames: Annotated[str, typer.Argument(help="frames:DIR of a real frame.")],
    rounds: Annotated[int, typer.Option(help="Rounds of both forms; the median is shown.")] = 3,
    batches: Annotated[int, typer.Option(help="B, and the number of batches.")] = 5,
    batch_size: Annotated[int, typer.Option(help="Samples a batch.")] = 1,
    reri_data: Annotated[str, typer.Option(help="paired or paper.")] = "paired",
    full_size: Annotated[bool, typer.Option("--full", help="One run of the shared form at full size.")] = False,
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = RESULT,
) -> None:
    if full_size:
        result = full(frames, batches, batch_size, reri_data)
    else:
        result = quarter(frames, rounds, batches, batch_size, reri_data)
    result = {"provenance": provenance(), **result}
    known = json.loads(out.read_text()) if out.exists() else {}
    known["full" if full_size else f"quarter, {reri_data}"] = result
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(known, indent=2) + "\n")
    Console().print_json(data=result)


if __name__ == "__main__":
    typer.run(main)
