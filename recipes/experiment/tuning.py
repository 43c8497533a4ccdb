"""python -m recipes.experiment.tuning: every method's own setting, swept on scenes that the table does not use.

The trained regime at one ratio, one seed that the table does not use either; a cell per setting, kept and resumed as
the experiment's are. It ends by writing the table into docs/results.md.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from fastalter.comparison import Cell, read_results
from recipes.experiment.__main__ import ROOT
from recipes.experiment.methods import TUNED
from recipes.experiment.page import PAGE, write_block
from recipes.experiment.regimes import TUNE, study, trained, use_one_thread, write_splits
from recipes.experiment.work import run_missing
from recipes.tiny_checkpoint import WORK, begin

RESULTS = ROOT / "bench" / "results" / "tuning"
SEED = 10
BEGIN, END = "<!-- tuning: begin -->", "<!-- tuning: end -->"


def main(
    work: Annotated[Path, typer.Option(help="Data, parents, scores and training states.")] = WORK,
    results: Annotated[Path, typer.Option(help="One JSON file per finished cell.")] = RESULTS,
    ratio: Annotated[float, typer.Option(help="Share of the weights that goes.")] = 0.95,
    minutes: Annotated[float, typer.Option(help="Begin no cell after this long; the next run goes on.")] = 1e9,
    only: Annotated[str, typer.Option(help="Settings whose name contains this.")] = "",
) -> None:
    """Run the settings that are missing, then write down all that are there. One thread; start it twice for two."""
    use_one_thread()
    begin(work)
    write_splits(work / "data")
    cells = [Cell(trained(), method, ratio, SEED) for method in TUNED if only in method.name]
    run_missing(cells, study(work / "data", TUNE), work / "tuning", results, time.monotonic() + 60 * minutes)
    write_block(PAGE, BEGIN, END, table(results))


def table(results: Path) -> str:
    """Markdown: what each setting has before and after the training, the best of all first."""
    lines = ["| setting | mAP before | mAP | NDS | seconds to score |", "|---|---|---|---|---|"]
    for found in sorted(read_results(results), key=lambda result: -result["after"]["mean_ap"]):
        before, after = found["before"], found["after"]
        lines.append(
            f"| {found['method']} | {100 * before['mean_ap']:.1f} | {100 * after['mean_ap']:.1f} | "
            f"{100 * after['nd_score']:.1f} | {found['seconds'].get('score', 0):.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
