"""python -m recipes.experiment.tables: the finished cells as tables in docs/results.md, beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Annotated

import typer

from fastalter.comparison import DENSE, Result, Row, paired, read_results, rows
from fastalter.comparison.document import write_document
from recipes.experiment.__main__ import RESULTS
from recipes.experiment.page import PAGE, dense_of, ratios_of, write_block
from recipes.experiment.picture import PICTURE, draw

BEGIN, END = "<!-- experiment: begin -->", "<!-- experiment: end -->"
OWN = "modalfisher"
"""The method whose lead over each other one is shown."""
FOLDED = "<details><summary>More of this regime: NDS, before training, what stays</summary>\n\n{}\n</details>\n"
BRANCHES = ("camera", "lidar", "fusion")
ALSO_AGAINST = {"trained longer": "trained"}
"""Regimes whose rows also stand beside our own method's in another: what it has with the same steps in all."""

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
PAPER_OF: Mapping[str, tuple[str, Mapping[str, tuple[float, float]]]] = {
    "trained": ("80 and 90", PAPER),
    "trained longer": ("", {}),
    "at load": ("80 and 90", PAPER),
    "at load longer": ("80 and 90", PAPER),
    "structured": ("30 and 50", PAPER_STRUCTURED),
}
"""Regime -> what the paper's two numbers stand at, and the numbers. It prunes at load."""
ORDER = list(PAPER_OF)
"""Of the regimes on the page."""


def main(
    results: Annotated[Path, typer.Option(help="The finished cells.")] = RESULTS,
    page: Annotated[Path, typer.Option(help="The page whose block is written anew.")] = PAGE,
) -> None:
    """Write the block between the markers of the page, the picture beside it, and comparison.json beside the cells."""
    found = read_results(results)
    write_block(page, BEGIN, END, block(found))
    draw(found, page.parent / PICTURE)
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
    own = [row for row in after if row.method == OWN]
    parts = []
    for regime in regimes:
        of_regime = [row for row in after if row.regime == regime]
        parts.append(f"### Regime: {regime}\n\n{_dense(after, regime)}{_compared(of_regime, own)}")
        rest = [
            _table(title, chosen)
            for title, table in others.items()
            if (chosen := [row for row in table if row.regime == regime and row.method != DENSE.name])
        ]
        if pruned := [result for result in results if result["regime"] == regime and result.get("kept")]:
            rest.append(_shares(pruned))
        parts.append(FOLDED.format("\n".join(rest)))
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


def _dense(found: Sequence[Row], regime: str) -> str:
    """A paragraph, or nothing where the table has no such network."""
    dense = dense_of(found, regime)
    return f"Not pruned, same training: mAP {_cell(dense)}.\n\n" if dense else ""


def _compared(found: Sequence[Row], own: Sequence[Row]) -> str:
    """The regime's main table: also how far our own method's rows are ahead, and the paper's numbers."""
    regime = found[0].regime
    what, paper = PAPER_OF.get(regime, ("", {}))
    extra = _leads(found, [row for row in own if row.regime == regime], OWN)
    if other := ALSO_AGAINST.get(regime):
        extra |= _leads(found, [row for row in own if row.regime == other], f"{OWN}, {other},")
    if what:
        extra[f"paper, {what} %"] = lambda method: " and ".join(f"{value:.1f}" for value in paper.get(method, ()))
    return _table("mAP after training", found, extra)


def _leads(found: Sequence[Row], leader: Sequence[Row], name: str) -> dict[str, Callable[[str], str]]:
    """A column per ratio: how far the leader's row is ahead of each method's; none where it has no row."""
    by_place = {(row.method, row.ratio): row for row in found}
    ahead = {row.ratio: row for row in leader}
    return {f"{100 * r:g} %: {name} ahead by": lambda m, r=r: _ahead(ahead[r], by_place.get((m, r)))
            for r in ratios_of(found) if r in ahead}  # fmt: skip


def _table(title: str, found: Sequence[Row], extra: Mapping[str, Callable[[str], str]] | None = None) -> str:
    """A row per method, a column per ratio, and the extra columns: title -> (method -> text)."""
    pruned = {(row.method, row.ratio): row for row in found if row.method != DENSE.name}
    return _layout(title, {place: _cell(row) for place, row in pruned.items()}, extra or {})


def _shares(results: Sequence[Result]) -> str:
    """What a method leaves of every branch, means over the seeds; of pruned cells."""
    seeds: dict[tuple[str, float], list[Mapping[str, float]]] = {}
    for result in results:
        seeds.setdefault((result["method"], result["ratio"]), []).append(result["kept"])
    cells = {place: _mean_shares(kept) for place, kept in seeds.items()}
    return _layout(f"kept of {', '.join(BRANCHES)}, %", cells, {})


def _layout(title: str, cells: Mapping[tuple[str, float], str], extra: Mapping[str, Callable[[str], str]]) -> str:
    """The markdown of a table: (method, ratio) -> text, methods in the order in which they come."""
    ratios = sorted({ratio for _, ratio in cells})
    heads = [*(f"{100 * ratio:g} %" for ratio in ratios), *extra]
    lines = [f"| {title} | {' | '.join(heads)} |", "|" + "---|" * (1 + len(heads))]
    for method in dict.fromkeys(method for method, _ in cells):
        texts = [*(cells.get((method, ratio), "") for ratio in ratios), *(text(method) for text in extra.values())]
        lines.append(f"| {method} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def _mean_shares(seeds: Sequence[Mapping[str, float]]) -> str:
    return ", ".join(f"{100 * mean(seed[branch] for seed in seeds):.1f}" for branch in BRANCHES)


def _cell(row: Row) -> str:
    """Mean and spread in points of mAP, and the number of seeds."""
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
