"""Inline SVG by hand: elements whose colours are the page's own, so that one drawing serves dark, light and print."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image

MINUS = "\u2212"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """An element; attribute names may end in _ and use _ for -, numbers are rounded to 2 decimals, None is left out."""
    parts = [
        f' {name.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for name, value in attributes.items()
        if value is not None
    ]
    inside = "".join(str(escape(child)) for child in children)
    return Markup(f"<{tag}{''.join(parts)}>{inside}</{tag}>" if inside else f"<{tag}{''.join(parts)}/>")


def drawing(width: float, height: float, label: str, children: Sequence[str], *, class_: str | None = None) -> Markup:
    """A whole picture that a screen reader announces as `label`; it scales with its column."""
    size = f"0 0 {_plain(width)} {_plain(height)}"
    return element("svg", *children, viewBox=size, role="img", aria_label=label, class_=class_)


def text(x: float, y: float, words: str, *, anchor: str = "start", class_: str | None = None) -> Markup:
    """Words at a place."""
    return element("text", words, x=x, y=y, text_anchor=None if anchor == "start" else anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def polyline(points: Sequence[tuple[float, float]], class_: str, **attributes: object) -> Markup:
    """A line through points."""
    return element("polyline", points=_points(points), class_=class_, **attributes)


def polygon(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """A closed outline."""
    return element("polygon", points=_points(points), class_=class_)


def path(data: str, class_: str, **attributes: object) -> Markup:
    """A path; nothing where it is empty."""
    return element("path", d=data, class_=class_, **attributes) if data else Markup("")


def rectangles(boxes: Sequence[tuple[float, float, float, float]]) -> str:
    """Path data of many (x, y, width, height)."""
    return "".join(f"M{_plain(x)} {_plain(y)}h{_plain(w)}v{_plain(h)}h{_plain(-w)}z" for x, y, w, h in boxes)


def picture(
    values: NDArray[np.uint8], palette: Sequence[int], x: float, y: float, width: float, height: float
) -> Markup:
    """Values [H, W] as a PNG inside the SVG; `palette` is r, g, b of each of the 256 values in turn."""
    image = Image.fromarray(np.ascontiguousarray(values))
    image.putpalette(list(palette))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    place = {"x": x, "y": y, "width": width, "height": height, "preserveAspectRatio": "none"}
    return element("image", href=f"data:image/png;base64,{data}", **place)


def power_of_ten(exponent: int, sign: int = 1) -> str:
    """ "−10⁻³"."""
    return f"{MINUS if sign < 0 else ''}10{str(exponent).translate(SUPERSCRIPTS)}"


def number(value: float) -> str:
    """A number of an axis, with a proper minus."""
    return f"{value:g}".replace("-", MINUS)


def nice_ticks(top: float, count: int = 3) -> list[float]:
    """0 and about `count` round numbers up to `top`."""
    if not top > 0:
        return [0.0]
    step = 10 ** math.floor(math.log10(top / count))
    step = next(step * factor for factor in (1, 2, 2.5, 5, 10) if top / (step * factor) <= count)
    return [step * i for i in range(int(top / step + 1e-9) + 1)]


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_plain(x)},{_plain(y)}" for x, y in points)


def _plain(value: object) -> str:
    """Numbers short and the same everywhere; what would be -0 is 0."""
    if isinstance(value, (float, np.floating)):
        short = f"{float(value):.2f}".rstrip("0").rstrip(".")
        return "0" if short in ("-0", "") else short
    return str(value)
