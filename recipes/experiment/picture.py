"""docs/experiment.png, which `recipes.experiment.tables` draws: mAP against what is removed, a panel per regime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastalter.artifacts import atomic_path
from fastalter.comparison import Result, Row, rows
from recipes.experiment.methods import MAIN
from recipes.experiment.page import dense_of, ratios_of
from recipes.experiment.regimes import at_load, structured, trained

PICTURE = "experiment.png"
PANELS = {trained().name: "weights", at_load().name: "weights", structured().name: "FLOPs"}
"""Regime -> what its ratio is a share of."""

# Okabe and Ito's palette, and a mark for each: told apart in grey as well. Others are drawn thin and grey.
STYLES = {
    "modalfisher": ("#D55E00", "o"),
    "altermoma": ("#0072B2", "s"),
    "deci": ("#56B4E9", "^"),
    "snip": ("#009E73", "v"),
    "prospr": ("#E69F00", "D"),
    "imp": ("#CC79A7", "P"),
    "magnitude": ("#000000", "X"),
}
OTHERS = {"altermoma-paper": "s", "synflow": "*", "random": "."}


def draw(results: Sequence[Result], path: Path) -> None:
    """Write the picture whole or not at all: means over the seeds, bars of one sample standard deviation."""
    found = rows(results)
    figure = Figure(figsize=(12, 4.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for axes, (regime, of) in zip(panels, PANELS.items(), strict=True):
        _panel(axes, regime, of, [row for row in found if row.regime == regime], dense_of(found, regime))
    panels[0].set_ylabel("mAP after training")
    drawn = [pair for axes in panels for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    entries = {label: handle for handle, label in drawn}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    print(f"wrote {path}")


def _panel(axes: Axes, regime: str, of: str, found: Sequence[Row], dense: Row | None) -> None:
    ratios = ratios_of(found)
    if dense is not None:
        axes.axhline(100 * dense.mean, color="#777777", linewidth=1, linestyle="--", label="not pruned")
    for number, method in enumerate(method.name for method in MAIN):
        aside = 0.025 * (number - len(MAIN) / 2)  # or equal values would hide each other
        line = sorted((row for row in found if row.method == method), key=lambda row: row.ratio)
        colour, mark = STYLES.get(method) or ("#999999", OTHERS[method])
        axes.errorbar(
            [ratios.index(row.ratio) + aside for row in line],
            [100 * row.mean for row in line],
            yerr=[100 * (row.spread or 0.0) for row in line],
            label=method if line else None,
            color=colour,
            marker=mark,
            linewidth=1.8 if method in STYLES else 0.8,
            markersize=5,
            capsize=2,
        )
    axes.set_title(regime, loc="left", fontsize=11)
    axes.set_xlabel(f"{of} removed")
    axes.set_xticks(range(len(ratios)), [f"{100 * ratio:g} %" for ratio in ratios])
    axes.set_xlim(-0.3, len(ratios) - 0.7)
    axes.set_ylim(bottom=-2)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
