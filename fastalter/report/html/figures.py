"""The report's pictures: from numbers to inline SVG, each about as wide as a phone, in the page's own colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from fastalter.report.html import svg

Array = NDArray[np.float64]

WIDTH = 340.0
DECADES = 6
"""A score this many powers of ten below the largest is drawn as zero."""
PER_DECADE = 4
"""Bars of the histogram."""
CELLS = 54
"""Of the density, along each axis."""
SPAN = 9
"""Powers of ten that an axis of the density covers at most."""


@dataclass(frozen=True)
class Axes:
    """A plot area and its scales: data (x0..x1, y0..y1) to the box (left, top, width, height)."""

    x0: float
    x1: float
    y0: float
    y1: float
    left: float
    top: float
    width: float
    height: float

    def x(self, value: float) -> float:
        """Data to picture."""
        return self.left + (value - self.x0) / (self.x1 - self.x0) * self.width

    def y(self, value: float) -> float:
        """Data to picture; up is up."""
        return self.top + self.height - (value - self.y0) / (self.y1 - self.y0) * self.height

    @property
    def bottom(self) -> float:
        """Lower edge of the box."""
        return self.top + self.height

    def x_tick(self, value: float, label: str, *, grid: bool = True) -> list[Markup]:
        """A grid line and its label below."""
        x = self.x(value)
        words = svg.text(x, self.bottom + 15, label, anchor="middle", class_="tick")
        return [svg.line(x, self.top, x, self.bottom, "grid"), words] if grid else [words]

    def y_tick(self, value: float, label: str) -> list[Markup]:
        """A grid line and its label to the left."""
        y = self.y(value)
        words = svg.text(self.left - 5, y + 4, label, anchor="end", class_="tick")
        return [svg.line(self.left, y, self.left + self.width, y, "grid"), words]


# ---- score distributions -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SignedLog:
    """s -> sign(s) * log10(1 + |s| / 10**low): linear around zero, powers of ten beyond; shared by all branches."""

    low: int
    first: float
    last: float

    @staticmethod
    def of(scores: Array) -> SignedLog:
        """Fitted to all scores of a run."""
        finite = scores[np.isfinite(scores)]
        top = float(np.abs(finite).max(initial=0.0))
        low = math.ceil(math.log10(top)) - DECADES if top > 0 else -DECADES
        scale = SignedLog(low, 0.0, 0.0)
        ends = scale(np.array([finite.min(initial=0.0), finite.max(initial=0.0)]))
        first, last = math.floor(ends[0] * PER_DECADE) / PER_DECADE, math.ceil(ends[1] * PER_DECADE) / PER_DECADE
        return SignedLog(low, first, max(last, first + 1))

    def __call__(self, scores: Array) -> Array:
        return np.asarray(np.sign(scores) * np.log10(1 + np.abs(scores) / 10.0**self.low))

    def ticks(self) -> list[tuple[float, str]]:
        """Zero and every second power of ten on both sides."""
        found = [(0.0, "0")]
        for sign in (1, -1):
            for decades in range(2, DECADES + 1, 2):
                place = sign * math.log10(1 + 10.0**decades)
                if self.first - 1e-6 <= place <= self.last + 1e-4:
                    found.append((place, svg.power_of_ten(self.low + decades, sign)))
        return found


def histogram(
    name: str, scores: Array, kept: NDArray[np.bool_] | None, threshold: float | None, scale: SignedLog
) -> Markup:
    """How one branch's scores are distributed; what the mask keeps in the branch's colour, the rest grey."""
    finite = np.isfinite(scores)
    places = scale(scores[finite])
    at = float(scale(np.array([threshold]))[0]) if threshold is not None and math.isfinite(threshold) else None
    edges = _edges(scale, at)
    stays = np.ones(len(places), bool) if kept is None else kept[finite]
    counts = np.stack([np.histogram(places[stays], edges)[0], np.histogram(places[~stays], edges)[0]])
    share = 100 * counts / max(1, len(places))
    highest = float(share.sum(0).max(initial=0.0))
    axes = Axes(edges[0], edges[-1], 0, highest * 1.12 or 1, 34, 16, WIDTH - 44, 150)
    parts: list[str] = []
    for value, label in scale.ticks():
        parts += axes.x_tick(value, label)
    for value in svg.nice_ticks(highest):
        parts += axes.y_tick(value, f"{value:g} %")
    base = np.zeros(len(edges) - 1)
    for row, class_ in ((share[0], f"fill b-{name}"), (share[1], "fill removed")):
        bars = [
            (axes.x(left), axes.y(low + height), axes.x(right) - axes.x(left), axes.y(low) - axes.y(low + height))
            for left, right, low, height in zip(edges[:-1], edges[1:], base, row, strict=True)
            if height
        ]
        parts.append(svg.path(svg.rectangles(bars), class_))
        base = base + row
    if at is not None and threshold is not None:
        parts.append(svg.line(axes.x(at), axes.top - 4, axes.x(at), axes.bottom, "threshold"))
        side = "end" if axes.x(at) > axes.left + axes.width * 0.6 else "start"
        offset = -5 if side == "end" else 5
        parts.append(svg.text(axes.x(at) + offset, axes.top + 4, f"τ = {threshold:.2g}", anchor=side, class_="mark"))
    parts.append(svg.text(axes.left + axes.width / 2, axes.bottom + 32, "score (signed log)", anchor="middle"))
    label = f"Histogram of the {name} branch's {len(scores):,} scores"
    if kept is not None:
        label += f", of which {int(kept.sum()):,} are kept"
    return svg.drawing(WIDTH, axes.bottom + 40, label, parts)


def _edges(scale: SignedLog, at: float | None) -> Array:
    """Bin edges over the whole scale; the threshold is one of them, so that no bar lies on both sides."""
    anchor = 0.0 if at is None else at
    first = math.ceil((anchor - scale.first) * PER_DECADE + 1e-9)
    last = math.ceil((scale.last - anchor) * PER_DECADE + 1e-9)
    return anchor + np.arange(-first, last + 1) / PER_DECADE


# ---- DeCI against ReRI -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TermScale:
    """Common axes of DeCI and ReRI for all branches: powers of ten low..high."""

    low: int
    high: int

    @staticmethod
    def of(deci: Array, reri: Array) -> TermScale:
        """From the lowest thousandth of what is not zero to the largest."""
        values = np.concatenate([term[(term > 0) & np.isfinite(term)] for term in (deci, reri)])
        if not len(values):
            return TermScale(-1, 0)
        high = math.ceil(math.log10(values.max()) + 1e-12)
        lowest = float(np.partition(values, len(values) // 1000)[len(values) // 1000])
        return TermScale(max(min(math.floor(math.log10(lowest)), high - 1), high - SPAN), high)


@dataclass(frozen=True)
class Density:
    """Counts of one branch's weights [CELLS, CELLS] (DeCI, ReRI), and how many lie off the axes."""

    name: str
    counts: NDArray[np.int64]
    outside: int


def density(name: str, deci: Array, reri: Array, scale: TermScale) -> Density:
    """Count the weights in each cell of the log-log plane."""
    inside = (deci > 0) & (reri > 0)
    x, y = np.log10(deci[inside]), np.log10(reri[inside])
    span = (scale.low, scale.high)
    counts = np.histogram2d(x, y, CELLS, (span, span))[0].astype(np.int64)
    return Density(name, counts, len(deci) - int(counts.sum()))


def levels(most: int) -> list[int]:
    """Lower bounds of the shades: 1, 10, 100, ... up to the most crowded cell."""
    return [10**power for power in range(max(1, len(str(most))))]


@dataclass(frozen=True)
class Line:
    """S = alpha * DeCI - beta * ReRI = tau."""

    alpha: float
    beta: float
    tau: float


def scatter(found: Density, scale: TermScale, shades: Sequence[int], cut: Line | None, unit: str) -> Markup:
    """DeCI against ReRI of one branch: the more weights (or whatever the unit) in a cell, the more solid it is."""
    size = WIDTH - 62
    axes = Axes(scale.low, scale.high, scale.low, scale.high, 46, 8, size, size)
    parts: list[str] = []
    step = 1 if scale.high - scale.low <= 5 else 2
    for exponent in range(scale.high, scale.low - 1, -step):
        parts += axes.x_tick(exponent, svg.power_of_ten(exponent))
        parts += axes.y_tick(exponent, svg.power_of_ten(exponent))
    level = np.searchsorted(np.array(shades), found.counts, side="right")
    for number in range(1, len(shades) + 1):
        data = svg.rectangles(_runs(level == number, axes))
        parts.append(svg.path(data, f"fill crisp b-{found.name}", fill_opacity=shade(number, len(shades))))
    if cut is not None:
        parts += _cut_line(cut, scale, axes)
    parts.append(svg.text(axes.left + size / 2, axes.bottom + 32, "DeCI (importance)", anchor="middle"))
    x, y = 12.0, axes.top + size / 2
    turn = f"rotate(-90 {x:g} {y:g})"
    parts.append(svg.element("text", "ReRI (redundancy)", x=x, y=y, text_anchor="middle", transform=turn))
    label = f"DeCI against ReRI of {int(found.counts.sum()):,} {unit} of the {found.name} branch"
    return svg.drawing(WIDTH, axes.bottom + 40, label, parts)


def shade(number: int, count: int) -> float:
    """Opacity of shade `number` of `count`."""
    return round(0.15 + 0.85 * number / count, 2)


def _runs(chosen: NDArray[np.bool_], axes: Axes) -> list[tuple[float, float, float, float]]:
    """Chosen cells [x, y] as boxes, neighbours along x as one."""
    cell = axes.width / CELLS
    boxes = []
    for row in range(CELLS):
        column = 0
        while column < CELLS:
            start = column
            while column < CELLS and chosen[column, row]:
                column += 1
            if column > start:
                y = axes.bottom - (row + 1) * cell
                boxes.append((axes.left + start * cell, y, (column - start) * cell, cell))
            column += 1
    return boxes


def _cut_line(cut: Line, scale: TermScale, axes: Axes) -> list[str]:
    """The curve S = tau on log axes: walked along both axes, because it turns from steep to level."""
    walk = np.logspace(scale.low, scale.high, 240)
    points: list[tuple[float, float]] = []
    if cut.alpha:
        points += zip((cut.tau + cut.beta * walk) / cut.alpha, walk, strict=True)
    if cut.beta:
        points += zip(walk, (cut.alpha * walk - cut.tau) / cut.beta, strict=True)
    inside = 10.0**scale.low * (1 - 1e-9), 10.0**scale.high * (1 + 1e-9)
    points = [p for p in points if all(inside[0] <= value <= inside[1] for value in p)]
    falling = cut.alpha * cut.beta < 0
    points.sort(key=lambda p: (p[0], -p[1] if falling else p[1]))
    if len(points) < 2:
        return []
    drawn = [(axes.x(math.log10(d)), axes.y(math.log10(r))) for d, r in points]
    parts: list[str] = [svg.polyline(drawn, "threshold")]
    if cut.alpha > 0 and cut.beta >= 0:
        right, low = axes.left + axes.width - 4, axes.bottom - 7
        parts.append(svg.text(right, low, "kept", anchor="end", class_="mark"))
        parts.append(svg.text(axes.left + 4, axes.top + 14, "removed", class_="mark"))
    return parts


# ---- maps from above ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Extent:
    """What a map covers, metres: x to the right, y up."""

    x0: float
    x1: float
    y0: float
    y1: float


def bev(label: str, values: NDArray[np.float32], top: float, extent: Extent, outlines: Sequence[Array]) -> Markup:
    """One map [X, Y] from above; `top` is where the colour scale ends; outlines [4, 2] are ground-truth boxes."""
    size, left, head = 160.0, 30.0, 6.0
    axes = Axes(extent.x0, extent.x1, extent.y0, extent.y1, left, head, size, size)
    steps = np.clip(np.nan_to_num(values) / top, 0, 1) if top > 0 else np.zeros_like(values)
    indices = np.round(255 * steps).astype(np.uint8).T[::-1]
    parts: list[str] = [svg.picture(indices, viridis(), left, head, size, size)]
    for box in outlines:
        corners = [(axes.x(float(x)), axes.y(float(y))) for x, y in box]
        if all(left <= x <= left + size and head <= y <= head + size for x, y in corners):
            parts.append(svg.polygon(corners, "box"))
    x, y = axes.x(0), axes.y(0)
    parts.append(svg.polygon([(x + 6, y), (x - 4, y + 4), (x - 4, y - 4)], "ego"))
    for value in (extent.x0, (extent.x0 + extent.x1) / 2, extent.x1):
        parts += axes.x_tick(value, svg.number(value), grid=False)
    for value, drop in ((extent.y0, 0), ((extent.y0 + extent.y1) / 2, 4), (extent.y1, 9)):
        parts.append(svg.text(left - 4, axes.y(value) + drop, svg.number(value), anchor="end", class_="tick"))
    return svg.drawing(left + size + 12, head + size + 20, label, parts)


@cache
def viridis() -> tuple[int, ...]:
    """Matplotlib's colour map as a palette: r, g, b of 256 colours."""
    from matplotlib import colormaps

    table = colormaps["viridis"](np.arange(256), bytes=True)[:, :3]
    return tuple(int(value) for value in table.reshape(-1))


def colour_bar(top: float) -> Markup:
    """The scale of a row of maps."""
    ramp = np.arange(256, dtype=np.uint8)[None]
    parts: list[str] = [
        svg.picture(ramp, viridis(), 16, 2, 160, 10),
        svg.text(12, 11, "0", anchor="end", class_="tick"),
        svg.text(181, 11, f"{top:.3g} and more", class_="tick"),
    ]
    return svg.drawing(270, 16, f"Colour scale from 0 to {top:.3g}", parts, class_="scale")


# ---- mAP against beta/alpha --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """One line of the sweep: (beta/alpha, mean, spread or None) in order."""

    label: str
    points: Sequence[tuple[float, float, float | None]]


def sweep(regime: str, curves: Sequence[Curve], dense: float | None) -> Markup:
    """mAP against beta/alpha, a line per ratio; whiskers are one standard deviation over the seeds."""
    xs = sorted({point[0] for curve in curves for point in curve.points})
    tops = [mean + (spread or 0) for curve in curves for _, mean, spread in curve.points]
    highest = max([*tops, dense or 0.0, 0.05])
    pad = (xs[-1] - xs[0]) * 0.05 or 0.5
    axes = Axes(xs[0] - pad, xs[-1] + pad, 0, highest * 1.08, 34, 10, WIDTH - 84, 190)
    parts: list[str] = []
    for value in _spaced(xs, 0.09 * (axes.x1 - axes.x0)):
        parts += axes.x_tick(value, svg.number(value))
    for value in svg.nice_ticks(highest, 4):
        parts += axes.y_tick(value, f"{value:.2g}")
    if dense is not None:
        parts.append(svg.line(axes.left, axes.y(dense), axes.left + axes.width, axes.y(dense), "dense"))
    places = [("dense", axes.y(dense), "muted")] if dense is not None else []
    for number, curve in enumerate(curves):
        series = f"s-{number % 4}"
        drawn = [(axes.x(x), axes.y(y)) for x, y, _ in curve.points]
        parts.append(svg.polyline(drawn, f"series {series}"))
        for (x, y), (_, mean, spread) in zip(drawn, curve.points, strict=True):
            if spread:
                parts.append(svg.line(x, axes.y(mean - spread), x, axes.y(mean + spread), f"series {series}"))
            parts.append(_marker(number, x, y, f"fill {series}"))
        places.append((curve.label, drawn[-1][1], f"fill {series}"))
    for label, y, class_ in _apart(places, 13):
        parts.append(svg.text(axes.left + axes.width + 6, y + 4, label, class_=class_))
    parts.append(svg.text(axes.left + axes.width / 2, axes.bottom + 32, "\u03b2 / \u03b1", anchor="middle"))
    return svg.drawing(WIDTH, axes.bottom + 40, f"mAP against beta/alpha in the regime {regime}", parts)


def _marker(number: int, x: float, y: float, class_: str) -> Markup:
    """Circle, square, triangle, diamond: told apart without colour."""
    shapes = {
        1: [(x - 3.2, y - 3.2), (x + 3.2, y - 3.2), (x + 3.2, y + 3.2), (x - 3.2, y + 3.2)],
        2: [(x, y - 4.4), (x + 4.2, y + 3.2), (x - 4.2, y + 3.2)],
        3: [(x, y - 4.6), (x + 4.6, y), (x, y + 4.6), (x - 4.6, y)],
    }
    corners = shapes.get(number % 4)
    return svg.element("circle", cx=x, cy=y, r=3.6, class_=class_) if corners is None else svg.polygon(corners, class_)


def _spaced(values: Sequence[float], least: float) -> list[float]:
    """Those that leave room for their labels."""
    chosen: list[float] = []
    for value in values:
        if not chosen or value - chosen[-1] >= least:
            chosen.append(value)
    return chosen


def _apart(places: Sequence[tuple[str, float, str]], least: float) -> list[tuple[str, float, str]]:
    """Labels from top to bottom, moved down where they would overlap."""
    moved: list[tuple[str, float, str]] = []
    for label, y, class_ in sorted(places, key=lambda place: place[1]):
        moved.append((label, max(y, moved[-1][1] + least) if moved else y, class_))
    return moved
