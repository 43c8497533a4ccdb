"""python -m recipes.experiment.tuning: every method's own setting, swept on scenes that the table does not use.

One ratio of a regime, one seed that the table does not use either; a cell per setting, kept and resumed as the
experiment's are. It ends by writing the tables into docs/results.md.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from fastalter.comparison import Cell, Result, read_results
from recipes.experiment.__main__ import ROOT
from recipes.experiment.methods import TUNED, TUNED_AT_LOAD
from recipes.experiment.page import PAGE, write_block
from recipes.experiment.regimes import TUNE, at_load_longer, study, trained, use_one_thread, write_splits
from recipes.experiment.work import run_missing
from recipes.tiny_checkpoint import WORK, begin

RESULTS = ROOT / "bench" / "results" / "tuning"
SEED = 10
BEGIN, END = "<!-- tuning: begin -->", "<!-- tuning: end -->"


def main(
    work: Annotated[Path, typer.Option(help="Data, parents, scores and training states.")] = WORK,
    results: Annotated[Path, typer.Option(help="One JSON file per finished cell.")] = RESULTS,
    minutes: Annotated[float, typer.Option(help="Begin no cell after this long; the next run goes on.")] = 1e9,
    only: Annotated[str, typer.Option(help="Cells whose name contains this.")] = "",
) -> None:
    """Run the settings that are missing, then write down all that are there. One thread; start it twice for two."""
    use_one_thread()
    begin(work)
    write_splits(work / "data")
    wanted = [cell for cell in cells() if only in cell.name]
    run_missing(wanted, study(work / "data", TUNE), work / "tuning", results, time.monotonic() + 60 * minutes)
    write_block(PAGE, BEGIN, END, table(results))


def cells() -> list[Cell]:
    """Every setting of every regime."""
    return [
        *(Cell(trained(), method, 0.95, SEED) for method in TUNED),
        *(Cell(at_load_longer(), method, 0.9, SEED) for method in TUNED_AT_LOAD),
    ]


def table(results: Path) -> str:
    """Markdown: what each setting has before and after the training, the best of each regime first."""
    lines = ["| regime | setting | mAP before | mAP | NDS | seconds to score |", "|---|---|---|---|---|---|"]
    for found in sorted(read_results(results), key=_place):
        before, after = found["before"], found["after"]
        at_first = "" if before is None else f"{100 * before['mean_ap']:.1f}"
        lines.append(
            f"| {found['regime']}, {100 * found['ratio']:g} % | {found['method']} | {at_first} | "
            f"{100 * after['mean_ap']:.1f} | {100 * after['nd_score']:.1f} | {found['seconds'].get('score', 0):.0f} |"
        )
    return "\n".join(lines) + "\n"


def _place(result: Result) -> tuple[bool, float]:
    return result["regime"] != trained().name, -result["after"]["mean_ap"]


if __name__ == "__main__":
    typer.run(main)
