"""Cells and results for tests, without any network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fastalter.comparison import DENSE, Cell, Judge, Method, Regime, Result, Study
from fastalter.training import TrainOptions


@dataclass
class Frames:
    """What a key needs of a split's frames."""

    split: str = "val"


def regime(**changes: Any) -> Regime:
    settings: dict[str, Any] = {
        "name": "trained",
        "start": lambda seed: nn.Linear(2, 2),
        "origin": {"fusion": "abc"},
        "options": TrainOptions(steps=3),
        "batch_size": 2,
    }
    return Regime(**{**settings, **changes})


def study(**changes: Any) -> Study:
    settings: dict[str, Any] = {
        "scored": lambda seed, regime: [],
        "trained": lambda seed, regime: None,
        "judge": Judge(Frames()),  # type: ignore[arg-type]
        "data": "some frames",
    }
    return Study(**{**settings, **changes})


def cell(method: Method | None = None, ratio: float = 0.9, seed: int = 0, **changes: Any) -> Cell:
    return Cell(regime(**changes), method or Method("snip", "snip"), ratio, seed)


def result(method: str, value: float, *, seed: int = 0, ratio: float = 0.9, before: float | None = 0.1) -> Result:
    state = None if before is None else {"mean_ap": before, "nd_score": before / 2}
    return {
        "regime": "trained",
        "method": method,
        "settings": {},
        "ratio": 0.0 if method == DENSE.name else ratio,
        "seed": seed,
        "key": "k",
        "before": state,
        "after": {"mean_ap": value, "nd_score": value / 2},
        "seconds": {"train": 1.0},
        "provenance": {"commit": "c0ffee"},
    }
