"""docs/results.md, and the blocks of it that commands write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastalter.artifacts import atomic_path
from fastalter.comparison import DENSE, Row
from recipes.experiment.__main__ import ROOT

PAGE = ROOT / "docs" / "results.md"
DENSE_OF = {"structured": "trained"}
"""Regimes whose unpruned network is that of another one: the same start, trained alike."""


def dense_of(found: Sequence[Row], regime: str) -> Row | None:
    """The row of the network that a regime's pruned ones are compared with, if it is there."""
    of = DENSE_OF.get(regime, regime)
    return next((row for row in found if row.regime == of and row.method == DENSE.name), None)


def ratios_of(found: Sequence[Row]) -> list[float]:
    """What the pruned networks are pruned at, rising."""
    return sorted({row.ratio for row in found if row.method != DENSE.name})


def write_block(page: Path, begin: str, end: str, text: str) -> None:
    """Put `text`, which ends with a newline, between the two marks of a page in place of what is there."""
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    with atomic_path(page) as temporary:
        temporary.write_text(f"{before}{begin}\n{text}{end}{after}", encoding="utf-8")
    print(f"wrote {page}")
