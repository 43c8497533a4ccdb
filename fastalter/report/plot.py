"""The kept fraction of every layer as a picture: layers in network order, one colour a branch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastalter.report.summary import BranchCount, LayerCount

FORMATS = (".png", ".pdf", ".svg")
NO_DATE: dict[str, dict[str, None]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}

# Okabe and Ito's palette: told apart with every kind of colour blindness.
COLOURS = {"camera": "#0072B2", "lidar": "#E69F00", "radar": "#CC79A7", "fusion": "#009E73"}
OTHERS = ("#56B4E9", "#D55E00", "#F0E442", "#000000")
ROW_INCHES = 0.19
HEAD_INCHES = 0.75
"""Height of one layer, and of a panel's title and axis."""


def save_plot(path: Path, layers: Sequence[LayerCount], branches: Sequence[BranchCount], title: str, kind: str) -> None:
    """Write the picture; `kind` is png, pdf or svg whatever the path ends in (it may be a temporary file)."""
    groups = [(count, [x for x in layers if x.branch == count.name]) for count in branches]
    groups = [(count, rows) for count, rows in groups if rows]
    columns = _columns([len(rows) for _, rows in groups])
    inches = [sum(_height(len(groups[i][1])) for i in column) for column in columns]
    height = max(inches) + 0.7
    figure = Figure(figsize=(8.2 * len(columns), height), dpi=110)
    FigureCanvasAgg(figure)
    for number, column in enumerate(columns):
        top = height - 0.85
        for i in column:
            count, rows = groups[i]
            inner = len(rows) * ROW_INCHES
            left = (number + 0.45) / len(columns)
            box = (left, (top - inner) / height, 0.43 / len(columns), inner / height)
            _panel(figure.add_axes(box), count, rows, COLOURS.get(count.name, OTHERS[i % len(OTHERS)]))
            top -= _height(len(rows))
    heading = fill(f"{title} (dashed: the whole branch)", width=88 * len(columns), max_lines=2, placeholder=" …")
    figure.suptitle(heading, x=0.02, y=1 - 0.12 / height, ha="left", va="top", fontsize=12)
    with rc_context({"svg.hashsalt": "fastalter"}):  # same counts, same bytes: no random ids, no date
        figure.savefig(path, format=kind, metadata=NO_DATE[kind])


def _height(rows: int) -> float:
    return rows * ROW_INCHES + HEAD_INCHES


def _columns(sizes: Sequence[int]) -> list[list[int]]:
    """Panels in order over one or two columns, cut where the columns come out most equal."""
    if sum(sizes) < 20 or len(sizes) < 2:
        return [list(range(len(sizes)))]
    cut = min(range(1, len(sizes)), key=lambda c: max(sum(map(_height, sizes[:c])), sum(map(_height, sizes[c:]))))
    return [list(range(cut)), list(range(cut, len(sizes)))]


def _panel(axes: Axes, count: BranchCount, rows: Sequence[LayerCount], colour: str) -> None:
    places = range(len(rows))
    fractions = [row.fraction for row in rows]
    axes.barh(places, fractions, color=colour, height=0.75)
    axes.axvline(count.fraction, color="black", linewidth=0.8, linestyle="--")
    axes.set_title(
        f"{count.name}: {count.kept:,} of {count.prunable:,} kept ({100 * count.fraction:.1f} %)",
        loc="left",
        fontsize=10.5,
    )
    axes.set_yticks(places, short_names([row.name for row in rows]), fontsize=7.2)
    for label, fraction in zip(axes.get_yticklabels(), fractions, strict=True):
        label.set_color("#B00000" if fraction == 0 else "black")
    for place, row in zip(places, rows, strict=True):
        axes.text(
            1.01,
            place,
            f"{percent(row)} of {short_size(row.size)}",
            va="center",
            fontsize=6.5,
            color="#B00000" if not row.kept else "#555555",
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"], fontsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the modules they all start with, and cut in the middle where they stay too long to read."""
    parts = [name.split(".") for name in names]
    common = 0
    while len({p[common] if len(p) > common + 1 else None for p in parts}) == 1 and len(parts[0]) > common + 1:
        common += 1
    short = [".".join(p[common:]) for p in parts]
    return [s if len(s) <= 64 else f"{s[:28]}…{s[-35:]}" for s in short]


def percent(row: LayerCount) -> str:
    """Kept share of a layer in words."""
    if not row.kept:
        return "nothing"
    return f"{100 * row.fraction:.0f} %" if row.fraction >= 0.005 else "<1 %"


def short_size(size: int) -> str:
    """1.23 M."""
    for unit, scale in (("M", 1_000_000), ("k", 1_000)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return str(size)
