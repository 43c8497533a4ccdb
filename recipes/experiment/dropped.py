"""python -m recipes.experiment.dropped: how the networks of finished cells do when a camera or the LiDAR goes dark.

Goes on from the trained networks in the work folder and writes the answer into each cell's file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from bench.bulk import provenance
from fastalter.comparison import Cell, Study, Work, run_dropped
from recipes.experiment.__main__ import RESULTS, cells
from recipes.experiment.regimes import study, use_one_thread
from recipes.experiment.work import claimed
from recipes.tiny_checkpoint import WORK

SENSORS = ("camera", "lidar")


def main(
    work: Annotated[Path, typer.Option(help="Data, parents, scores and training states.")] = WORK,
    results: Annotated[Path, typer.Option(help="The finished cells.")] = RESULTS,
    seeds: Annotated[int, typer.Option(help="Seeds, from 0 on.")] = 3,
    only: Annotated[str, typer.Option(help="Cells whose name contains this.")] = "",
) -> None:
    """Fill in what is missing. One thread; start it twice for two."""
    use_one_thread()
    common = study(work / "data")
    common = replace(common, judge=replace(common.judge, drops=SENSORS))
    for cell in cells(seeds):
        if only in cell.name:
            fill_in(cell, common, work / "experiment", results)


def fill_in(cell: Cell, common: Study, work: Path, results: Path) -> None:
    """A cell that is not finished, has its answer, or belongs to another process is left alone."""
    with claimed(work / "claims" / cell.name) as mine:
        result = cell.read(results, common) if mine else None
        if result is None or result["dropped"] or not (work / "cells" / cell.name / "training" / "last.pt").exists():
            return
        dropped = run_dropped(cell, common, Work(work))
        cell.write(results, {**result, "dropped": dropped, "dropped_provenance": provenance()})
    print(cell.name, *(f"{sensor} dark: {state['mean_ap']:.3f}" for sensor, state in dropped.items()), flush=True)


if __name__ == "__main__":
    typer.run(main)
