"""python -m recipes.experiment.tables: the finished cells as tables in docs/results.md, beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from fastalter.comparison import DENSE, Result, Row, paired, read_results, rows
from fastalter.comparison.document import write_document
from recipes.experiment.__main__ import RESULTS
from recipes.experiment.page import PAGE, write_block

BEGIN, END = "<!-- experiment: begin -->", "<!-- experiment: end -->"
ORDER = ("trained", "trained longer", "at load", "structured")
"""Of the regimes on the page."""
OWN = "modalfisher"
"""The method whose lead over each other one is shown."""
DENSE_OF = {"structured": "trained"}
"""Regimes whose unpruned network is that of another one: the same start, trained alike."""

PAPER = {
    "altermoma": (67.3, 63.5),
    "prospr": (64.3, 58.6),
    "synflow": (63.2, 49.3),
    "snip": (62.2, 50.2),
    "imp": (59.3, 42.7),
}
"""mAP of BEVFusion-mit on nuScenes val at 80 and 90 % (dense 67.8), AlterMOMA's Table 1."""
PAPER_STRUCTURED = {"altermoma": (65.3, 64.5), "prospr": (64.2, 62.5), "imp": (60.8, 57.6)}
"""The same of ResNet-101 + SECOND with 30 and 50 % fewer FLOPs (dense 64.6), its Table 5."""


def main(
    results: Annotated[Path, typer.Option(help="The finished cells.")] = RESULTS,
    page: Annotated[Path, typer.Option(help="The page whose block is written anew.")] = PAGE,
) -> None:
    """Write the block between the markers of the page, and comparison.json beside the cells."""
    found = read_results(results)
    write_block(page, BEGIN, END, block(found))
    write_document(results / "comparison.json", found)


def block(results: Sequence[Result]) -> str:
    """The markdown between the markers."""
    after = rows(results)
    others = {
        "NDS after training": rows(results, "nd_score"),
        "mAP before training": rows(results, when="before"),
        "mAP after training, cameras dark": rows(_dropped(results, "camera")),
        "mAP after training, LiDAR dark": rows(_dropped(results, "lidar")),
        "parameters gone, %": rows(_gone(results, "parameters")),
        "FLOPs gone, %": rows(_gone(results, "flops")),
    }
    there = dict.fromkeys(row.regime for row in after)
    regimes = sorted(there, key=lambda regime: ORDER.index(regime) if regime in ORDER else len(ORDER))
    parts = []
    for regime in regimes:
        of_regime = [row for row in after if row.regime == regime]
        dense = _dense([row for row in after if row.regime == DENSE_OF.get(regime, regime)])
        parts.append(f"### Regime: {regime}\n\n{dense}\n\n{_compared('mAP after training', of_regime)}")
        for title, table in others.items():
            if chosen := [row for row in table if row.regime == regime and row.method != DENSE.name]:
                parts.append(_table(title, chosen))
    commits = sorted({result.get("provenance", {}).get("commit", "")[:12] for result in results})
    hours = sum(sum(result["seconds"].values()) for result in results) / 3600
    time = f"{hours:.1f} hours of wall time, much of it beside other work"
    parts.append(f"{len(results)} cells, {time}; commits {', '.join(commits)}.\n")
    return "\n".join(parts)


def _dropped(results: Sequence[Result], sensor: str) -> list[Result]:
    """The cells that were judged with this sensor dropped, that judgement in place of the one with all sensors."""
    return [{**result, "after": result["dropped"][sensor]} for result in results if sensor in result.get("dropped", {})]


def _gone(results: Sequence[Result], budget: str) -> list[Result]:
    """The cells whose network was compacted, the share that went in place of the metric."""
    return [{**result, "after": {"mean_ap": result["reached"][budget]}} for result in results if result.get("reached")]


def _dense(found: Sequence[Row]) -> str:
    dense = [row for row in found if row.method == DENSE.name]
    return f"Not pruned, same training: mAP {_cell(dense[0])}." if dense else "The dense network has not been run yet."


def _compared(title: str, found: Sequence[Row]) -> str:
    """The regime's main table: also how far our own method is ahead, and the paper's numbers."""
    regime = found[0].regime
    what, paper = ("30 and 50", PAPER_STRUCTURED) if regime == "structured" else ("80 and 90", PAPER)
    by_place = {(row.method, row.ratio): row for row in found}
    ratios = _ratios(found)
    extra = {f"{100 * r:g} %: {OWN} ahead by": lambda m, r=r: _ahead(by_place.get((OWN, r)), by_place.get((m, r)))
             for r in ratios}  # fmt: skip
    extra[f"paper, {what} %"] = lambda method: " and ".join(f"{value:.1f}" for value in paper.get(method, ()))
    return _table(title, found, extra)


def _table(title: str, found: Sequence[Row], extra: Mapping[str, Callable[[str], str]] | None = None) -> str:
    """A row per method, a column per ratio, and the extra columns: title -> (method -> text)."""
    extra = extra or {}
    pruned = [row for row in found if row.method != DENSE.name]
    ratios = _ratios(pruned)
    heads = [*(f"{100 * ratio:g} %" for ratio in ratios), *extra]
    lines = [f"| {title} | {' | '.join(heads)} |", "|" + "---|" * (1 + len(heads))]
    by_place = {(row.method, row.ratio): row for row in pruned}
    for method in dict.fromkeys(row.method for row in pruned):
        cells = [_cell(by_place.get((method, ratio))) for ratio in ratios]
        cells += [text(method) for text in extra.values()]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _ratios(found: Sequence[Row]) -> list[float]:
    return sorted({row.ratio for row in found if row.method != DENSE.name})


def _cell(row: Row | None) -> str:
    """Mean and spread in points of mAP, and the number of seeds."""
    if row is None:
        return ""
    spread = "" if row.spread is None else f" ± {100 * row.spread:.1f}"
    return f"{100 * row.mean:.1f}{spread} ({len(row.values)})"


def _ahead(row: Row | None, other: Row | None) -> str:
    """Difference paired by seed, its spread, and p of a paired t-test."""
    found = paired(row, other) if row and other and row is not other else None
    if found is None:
        return ""
    spread = "" if found.spread is None else f" ± {100 * found.spread:.1f}"
    p = "" if found.p is None else f", p {found.p:.2g}"
    return f"{100 * found.difference:+.1f}{spread}{p}"


if __name__ == "__main__":
    typer.run(main)
