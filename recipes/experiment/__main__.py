"""python -m recipes.experiment: fill the table of methods x regimes x ratios x seeds, one file per finished cell.

The data and the single-sensor parents are those of `make tiny-checkpoint`, made where they are missing. What is
finished is not run again; an interrupted cell goes on from its scores and its last training checkpoint.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from fastalter.comparison import DENSE, Cell, read_results
from recipes.experiment.methods import ABLATIONS, CONTROLS, MAIN, TRAINED_LONGER
from recipes.experiment.regimes import at_load, longer, study, trained, use_one_thread, write_splits
from recipes.experiment.work import run_missing
from recipes.tiny_checkpoint import WORK, make_parents

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "experiment"
RATIOS = (0.9, 0.95, 0.8)
"""In the order in which they are run: 80 % separates the methods least."""

app = typer.Typer(add_completion=False)


def cells(parents: Path, seeds: int) -> list[Cell]:
    """All cells, the most telling first."""
    regimes = [trained(), at_load(parents)]
    table = [Cell(regime, DENSE, 0.0, seed) for regime in regimes for seed in range(seeds)]
    for ratio in RATIOS:
        for regime in regimes:
            for seed in range(seeds):
                table += [Cell(regime, method, ratio, seed) for method in MAIN]
    for extra in (CONTROLS, ABLATIONS):
        table += [Cell(regimes[0], method, 0.9, seed) for seed in range(seeds) for method in extra]
    for ratio in RATIOS[:2]:
        table += [Cell(longer(), method, ratio, seed) for seed in range(seeds) for method in TRAINED_LONGER]
    return table


@app.command()
def experiment(
    work: Annotated[Path, typer.Option(help="Data, parents, scores and training states.")] = WORK,
    results: Annotated[Path, typer.Option(help="One JSON file per finished cell.")] = RESULTS,
    seeds: Annotated[int, typer.Option(help="Seeds, from 0 on.")] = 3,
    workers: Annotated[int, typer.Option(help="Processes of one thread each.")] = 2,
    minutes: Annotated[float, typer.Option(help="Begin no cell after this long; the next run goes on.")] = 1e9,
    only: Annotated[str, typer.Option(help="Cells whose name contains this.")] = "",
    worker: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Run the cells that are missing."""
    if worker:
        use_one_thread()
        missing = [cell for cell in cells(work, seeds) if only in cell.name]
        run_missing(missing, study(work / "data"), work / "experiment", results, time.monotonic() + 60 * minutes)
        return
    make_parents(work)
    write_splits(work / "data")
    arguments = [*("--work", work), *("--results", results), *("--seeds", seeds), *("--only", only), "--worker"]
    command = [sys.executable, "-m", "recipes.experiment", *map(str, arguments), "--minutes", str(minutes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen(command, cwd=ROOT, env=environment) for _ in range(workers)]
    failed = [process for process in running if process.wait() != 0]
    done = len(read_results(results))
    print(f"{done} cells in {results}, {len(cells(work, seeds))} in the table")
    if failed:
        raise SystemExit("a worker stopped with an error; run the command again to go on")


if __name__ == "__main__":
    app()
