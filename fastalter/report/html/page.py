"""From what was read to the page: one dataclass a section, and the template that shows them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from numpy.typing import NDArray
from torch import Tensor

from fastalter.report.evaluation import ERRORS
from fastalter.report.html import figures
from fastalter.report.html.comparisons import Comparison, MetricTable, Sweep, sweeps, tables
from fastalter.report.html.evaluations import EvaluationTable
from fastalter.report.plot import percent, short_names, short_size
from fastalter.report.summary import BranchCount, LayerCount, branch_counts, layer_counts, total_count

if TYPE_CHECKING:
    from fastalter.altermoma import Reactivation
    from fastalter.criteria import Scores
    from fastalter.masks import Mask
    from fastalter.report.states import State

SHOWN = 99.5
"""Percentile of a row of maps at which its colour scale ends."""


@dataclass(frozen=True)
class Features:
    """What the feature section shows: the states, the first sample's boxes [G, 9], the range in metres, the data."""

    states: Sequence[State]
    boxes: Tensor
    bounds: tuple[float, ...]
    data: str
    tokens: Sequence[str]
    reactivation: Reactivation
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Inputs:
    """Everything that was read; a section is there when its part is."""

    scores: Scores | None = None
    mask: Mask | None = None
    features: Features | None = None
    comparison: Comparison | None = None
    evaluations: Sequence[EvaluationTable] = ()
    title: str | None = None


@dataclass(frozen=True)
class Section:
    """A part of the page, named as its macro in the template is; `body` is what the macro shows."""

    id: str
    body: Any


@dataclass(frozen=True)
class Page:
    """What the template is given; `unit` is what the scores are of, in the plural."""

    title: str
    unit: str
    facts: Sequence[tuple[str, str]]
    warnings: Sequence[str]
    sections: Sequence[Section]


def build(inputs: Inputs) -> Page:
    """Arrange the sections in their order."""
    sections: list[Section] = []
    if inputs.scores is not None and inputs.mask is not None:
        sections.append(_kept(inputs.scores, inputs.mask))
    if inputs.scores is not None:
        sections.append(_distributions(inputs.scores, inputs.mask))
        if {"deci", "reri"} <= set(inputs.scores.terms):
            sections.append(_terms(inputs.scores, inputs.mask))
    if inputs.features is not None:
        sections.append(_features(inputs.features))
    if inputs.comparison is not None:
        if found := sweeps(inputs.comparison):
            sections.append(_sweep(found))
        sections.append(_comparison(inputs.comparison))
    if inputs.evaluations:
        sections.append(_evaluation(inputs.evaluations))
    facts = [] if inputs.scores is None else _facts(inputs.scores, inputs.mask)
    warnings = [] if inputs.scores is None else _warnings(inputs.scores, inputs.mask)
    unit = "weights" if inputs.scores is None else inputs.scores.unit
    return Page(inputs.title or _title(inputs), unit, facts, warnings, sections)


def render(page: Page) -> str:
    """The page as one file: the style sheet inside, nothing to fetch."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "fraction": _fraction,
        "decimals": _decimals,
        "count": lambda n: f"{n:,}",
        "breakable": breakable,
    }
    environment.filters.update(filters)
    style = Markup((folder / "report.css").read_text(encoding="utf-8"))
    return environment.get_template("report.html.jinja").render(page=page, style=style, errors=list(ERRORS.values()))


def _fraction(value: float) -> str:
    return f"{100 * value:.1f}"


def breakable(name: str) -> Markup:
    """A dotted name or a path that breaks behind its dots, slashes and underscores first."""
    return Markup(re.sub(r"([./_])", r"\1<wbr>", str(escape(name))))


def _decimals(value: float) -> str:
    return "\u2013" if math.isnan(value) else f"{value:.3f}"


# ---- the head ----------------------------------------------------------------------------------------------------


def _title(inputs: Inputs) -> str:
    if inputs.scores is None:
        return "Pruning report"
    ratio = f" at {100 * inputs.mask.ratio:g} %" if inputs.mask is not None else ""
    return f"{inputs.scores.metadata['model']}, {inputs.scores.metadata['method']}{ratio}"


def _facts(scores: Scores, mask: Mask | None) -> list[tuple[str, str]]:
    told = scores.metadata
    settings = {key: value for key, value in told.get("settings", {}).items() if value is not None}
    facts = [("Model", told["model"]), ("Method", told["method"])]
    if mask is not None:
        facts.append(("Ratio", f"{mask.ratio:g}: {mask.kept_total:,} of {mask.layout.size:,} {mask.unit} kept"))
        facts.append(
            ("Threshold", f"{mask.threshold:.6g}" if math.isfinite(mask.threshold) else "none: nothing is kept")
        )
    facts += [("Data", told["data"]), ("Seed", told.get("seed", "not recorded"))]
    facts.append(("Settings", ", ".join(f"{key}\u00a0{_setting(value)}" for key, value in settings.items()) or "none"))
    checkpoint = told.get("checkpoint")
    if isinstance(checkpoint, dict):
        facts.append(("Checkpoint", f"{checkpoint.get('path')} ({checkpoint.get('layout')})"))
        facts.append(("SHA-256", checkpoint.get("sha256")))
    versions = (("fastalter", "fastalter_version"), ("torch", "torch_version"))
    facts.append(("Versions", ", ".join(f"{name}\u00a0{told[key]}" for name, key in versions if key in told)))
    return [(name, str(value)) for name, value in facts]


def _setting(value: object) -> str:
    if isinstance(value, list):
        return "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _warnings(scores: Scores, mask: Mask | None) -> list[str]:
    from fastalter.masks import emptied
    from fastalter.pipeline import data_remarks

    told = [*scores.metadata.get("warnings", []), *data_remarks({"synthetic": None, **scores.metadata})]
    lines = [str(line) for line in told]
    if mask is not None and (lost := emptied(mask)):
        lines.append(f"{len(lost)} of {len(mask)} layers lose every weight; their bars say so below.")
    return lines


# ---- what is kept ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerBar:
    """A layer's line: short and whole name, width of its bar in percent, words beside it."""

    short: str
    layer: LayerCount
    words: str


@dataclass(frozen=True)
class Kept:
    """Counts by branch, their total, and the layers of each branch that has any."""

    branches: Sequence[BranchCount]
    total: BranchCount
    bars: Sequence[tuple[BranchCount, Sequence[LayerBar]]]


def _kept(scores: Scores, mask: Mask) -> Section:
    counts, layers = branch_counts(mask, scores.metadata["branches"]), layer_counts(mask)
    bars = []
    for count in counts:
        inside = [layer for layer in layers if layer.branch == count.name]
        names = short_names([layer.name for layer in inside]) if inside else []
        rows = [
            LayerBar(name, layer, f"{percent(layer)} of {short_size(layer.size)}")
            for name, layer in zip(names, inside, strict=True)
        ]
        if rows:
            bars.append((count, rows))
    return Section("kept", Kept(counts, total_count(counts), bars))


# ---- scores ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoreRow:
    """One branch's scores in numbers."""

    branch: str
    lowest: float
    median: float
    highest: float
    negative: float
    not_finite: int


@dataclass(frozen=True)
class Distributions:
    """A histogram and a line of numbers for each branch."""

    pictures: Sequence[tuple[str, Markup]]
    rows: Sequence[ScoreRow]
    masked: bool


def _distributions(scores: Scores, mask: Mask | None) -> Section:
    kept = None if mask is None else _bits(mask)
    scale = figures.SignedLog.of(_array(scores.flat))
    pictures, rows = [], []
    for branch in scores.layout.branches:
        inside = scores.layout.range(branch)
        values = _array(scores.flat[inside])
        stays = None if kept is None else kept[inside]
        threshold = None if mask is None else mask.threshold
        pictures.append((branch, figures.histogram(branch, values, stays, threshold, scale)))
        rows.append(_score_row(branch, values))
    return Section("scores", Distributions(pictures, rows, mask is not None))


def _score_row(branch: str, values: figures.Array) -> ScoreRow:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return ScoreRow(branch, math.nan, math.nan, math.nan, math.nan, len(values))
    lowest, median, highest = (float(f(finite)) for f in (np.min, np.median, np.max))
    return ScoreRow(branch, lowest, median, highest, float((finite < 0).mean()), len(values) - len(finite))


def _bits(mask: Mask) -> NDArray[np.bool_]:
    return np.unpackbits(mask.bits.numpy(), bitorder="little")[: mask.layout.size].astype(bool)


def _array(values: Tensor) -> figures.Array:
    return np.asarray(values.detach().cpu().double().numpy(), dtype=np.float64)


# ---- the two terms -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Terms:
    """A density for each branch, the shades (lower bound, opacity), and how many scores lie off the axes."""

    pictures: Sequence[tuple[str, Markup]]
    shades: Sequence[tuple[str, float]]
    outside: int
    total: int
    cut: bool


def _terms(scores: Scores, mask: Mask | None) -> Section:
    deci, reri = (_array(scores.terms[name]) for name in ("deci", "reri"))
    scale = figures.TermScale.of(deci, reri)
    settings = scores.metadata.get("settings", {})
    cut = None
    if mask is not None and math.isfinite(mask.threshold):
        cut = figures.Line(float(settings.get("alpha", 1)), float(settings.get("beta", 1)), mask.threshold)
    branches = scores.layout.branches
    found = [figures.density(b, deci[scores.layout.range(b)], reri[scores.layout.range(b)], scale) for b in branches]
    shades = figures.levels(max(int(density.counts.max(initial=1)) for density in found))
    pictures = [(density.name, figures.scatter(density, scale, shades, cut, scores.unit)) for density in found]
    legend = [(f"{low:,}", figures.shade(number, len(shades))) for number, low in enumerate(shades, 1)]
    outside = sum(density.outside for density in found)
    return Section("terms", Terms(pictures, legend, outside, scores.layout.size, cut is not None))


# ---- features ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MapPanel:
    """One map, the state's name, and what is said below it."""

    state: str
    picture: Markup
    words: str


@dataclass(frozen=True)
class MapRow:
    """A branch's maps in every state, on one colour scale."""

    name: str
    panels: Sequence[MapPanel]
    scale: Markup


@dataclass(frozen=True)
class FeatureRows:
    """The rows, and what the maps were made of."""

    rows: Sequence[MapRow]
    made_of: Features


def _features(found: Features) -> Section:
    from fastalter.data.draw import box_corners

    x0, y0, _, x1, y1, _ = found.bounds
    extent = figures.Extent(x0, x1, y0, y1)
    outlines = [_array(corners[:4, :2]) for corners in box_corners(found.boxes)] if len(found.boxes) else []
    rows = []
    for name in found.states[0].maps:
        maps = [state.maps[name][0].numpy() for state in found.states]
        top = float(np.percentile(np.stack(maps), SHOWN))
        panels = []
        for state, values in zip(found.states, maps, strict=True):
            label = f"{name} map from above, {state.name}: mean {values.mean():.3g}, highest {values.max():.3g}"
            picture = figures.bev(label, values, top, extent, outlines)
            panels.append(MapPanel(state.name, picture, _map_words(name, state, values, maps[0])))
        rows.append(MapRow(name, panels, figures.colour_bar(top)))
    return Section("features", FeatureRows(rows, found))


def _map_words(name: str, state: State, values: NDArray[np.float32], before: NDArray[np.float32]) -> str:
    if name == state.masked:
        return "masked: zero"
    words = f"mean {values.mean():.3g}"
    length = float(np.linalg.norm(before))
    if values is before or not length:
        return words
    return f"{words}, changed by {100 * float(np.linalg.norm(values - before)) / length:.2g}\u00a0%"


# ---- comparisons and evaluations ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SweepPicture:
    """One regime's lines, and the same in numbers."""

    sweep: Sweep
    picture: Markup


def _sweep(found: Sequence[Sweep]) -> Section:
    pictures = [SweepPicture(s, figures.sweep(s.regime, s.curves, s.dense)) for s in found]
    return Section("beta", pictures)


@dataclass(frozen=True)
class MetricTables:
    """Tables of one metric, by regime."""

    metric: str
    tables: Sequence[MetricTable]


def _comparison(comparison: Comparison) -> Section:
    body = [MetricTables(name, tables(comparison, key)) for key, name in (("mean_ap", "mAP"), ("nd_score", "NDS"))]
    return Section("comparison", body)


def _evaluation(found: Sequence[EvaluationTable]) -> Section:
    return Section("evaluation", list(found))
