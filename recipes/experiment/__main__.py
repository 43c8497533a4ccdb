"""python -m recipes.experiment: fill the table of methods x regimes x ratios x seeds, one file per finished cell.

The data is that of `make tiny-checkpoint`, made where it is missing; the single-sensor backbones are in the repository.
What is finished is not run again; an interrupted cell goes on from its scores and its last training checkpoint.
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
from recipes.experiment.methods import (
    ABLATIONS,
    AT_LOAD_LONGER,
    CONTROLS,
    FIRST,
    MAIN,
    REVERSED,
    SECOND,
    STRUCTURED,
    TRAINED_LONGER,
)
from recipes.experiment.regimes import (
    at_load,
    at_load_longer,
    longer,
    structured,
    study,
    trained,
    use_one_thread,
    write_splits,
)
from recipes.experiment.work import run_missing
from recipes.tiny_checkpoint import WORK, begin

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "experiment"

app = typer.Typer(add_completion=False)


def cells(seeds: int) -> list[Cell]:
    """All cells, the most telling first: 80 % separates the methods least, the ablations only refine the controls.

    The ratios of the structured regime are shares of FLOPs, those of all others shares of weights.
    """
    before, after, more, small, after_more = trained(), at_load(), longer(), structured(), at_load_longer()
    table = [Cell(regime, DENSE, 0.0, seed) for regime in (before, after, after_more) for seed in range(seeds)]
    for regime, ratio, methods in (
        *((before, ratio, FIRST) for ratio in (0.95, 0.9)),
        *((after, ratio, FIRST) for ratio in (0.95, 0.9)),
        *((more, ratio, TRAINED_LONGER) for ratio in (0.95, 0.9)),
        (before, 0.9, CONTROLS),
        *((regime, 0.95, REVERSED) for regime in (before, after)),
        (after, 0.9, REVERSED),
        *((small, ratio, STRUCTURED) for ratio in (0.5, 0.3)),
        *((regime, ratio, SECOND) for regime in (after, before) for ratio in (0.95, 0.9)),
        *((regime, 0.8, MAIN) for regime in (before, after)),
        (before, 0.9, ABLATIONS),
        (after_more, 0.9, AT_LOAD_LONGER),
    ):
        table += [Cell(regime, method, ratio, seed) for seed in range(seeds) for method in methods]
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
        missing = [cell for cell in cells(seeds) if only in cell.name]
        run_missing(missing, study(work / "data"), work / "experiment", results, time.monotonic() + 60 * minutes)
        return
    begin(work)
    write_splits(work / "data")
    arguments = [*("--work", work), *("--results", results), *("--seeds", seeds), *("--only", only), "--worker"]
    command = [sys.executable, "-m", "recipes.experiment", *map(str, arguments), "--minutes", str(minutes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen(command, cwd=ROOT, env=environment) for _ in range(workers)]
    failed = [process for process in running if process.wait() != 0]
    done = len(read_results(results))
    print(f"{done} cells in {results}, {len(cells(seeds))} in the table")
    if failed:
        raise SystemExit("a worker stopped with an error; run the command again to go on")


if __name__ == "__main__":
    app()
