"""A comparison's JSON document, checked, and grouped as the report shows it: tables, and mAP against beta/alpha."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fastalter.errors import DataError
from fastalter.report.html.figures import Curve

KIND = "fastalter comparison"
METRICS = {"mean_ap": "mAP", "nd_score": "NDS"}
STATES = ("before", "after")
WEIGHTS = ("alpha", "beta")
Settings = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One method in one regime at one ratio with one seed; `before` and `after` map the metrics, None where not run."""

    regime: str
    method: str
    settings: Settings
    ratio: float
    seed: int
    before: Mapping[str, float] | None
    after: Mapping[str, float] | None

    @property
    def criterion(self) -> str:
        """A name of its own does not hide which criterion a method runs."""
        return str(self.settings.get("criterion") or self.method)

    @property
    def arguments(self) -> Settings:
        """All settings in one level, the criterion's name aside."""
        return {name: value for name, value in _flat(self.settings) if name != "criterion"}


@dataclass(frozen=True)
class Comparison:
    """The document: regimes in order, the dense network's metrics by regime, all other cells."""

    regimes: list[str]
    dense: Mapping[str, Mapping[str, float]]
    cells: list[Cell]


@dataclass(frozen=True)
class Value:
    """A metric over seeds. `best`: the highest of its column."""

    values: Sequence[float]
    best: bool = False

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return mean(self.values)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation; None for a single seed."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class MethodRow:
    """A method's line of a table: a value for every column, None where no cell is finished."""

    label: str
    values: list[Value | None]


@dataclass(frozen=True)
class MetricTable:
    """One metric in one regime: columns are (ratio, "before" or "after")."""

    regime: str
    metric: str
    columns: list[tuple[float, str]]
    rows: list[MethodRow]
    dense: float | None
    seeds: list[int]

    @property
    def ratios(self) -> list[tuple[float, int]]:
        """Each ratio and how many columns it has."""
        found: dict[float, int] = {}
        for ratio, _ in self.columns:
            found[ratio] = found.get(ratio, 0) + 1
        return list(found.items())


@dataclass(frozen=True)
class Sweep:
    """The lines of one regime; `deci_at_zero`: the criterion deci stands in for beta = 0."""

    regime: str
    curves: list[Curve]
    dense: float | None
    deci_at_zero: bool


def read_comparison(path: Path) -> Comparison:
    """Read and check a document as `fastalter.compare` writes it.

    Raises:
        DataError: no such file, not JSON, another kind of document, or the first entry that is not what it should be.
    """
    document = read_json(path, "a comparison")
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise DataError(f"{path}: not a comparison (no kind {KIND!r}); give the comparison.json that compare wrote")
    try:
        cells = [_cell(f"cells[{i}]", row) for i, row in enumerate(_list(document, "cells"))]
        dense = {str(k): _metrics(f"dense.{k}", v) for k, v in _mapping(document, "dense").items() if v is not None}
        regimes = [str(name) for name in _list(document, "regimes")]
    except _Wrong as wrong:
        raise DataError(f"{path}: {wrong}; write the comparison again") from None
    if not cells and not dense:
        raise DataError(f"{path}: the comparison has no cells; run it first")
    return Comparison(list(dict.fromkeys([*regimes, *(cell.regime for cell in cells)])), dense, cells)


def read_json(path: Path, what: str) -> Any:
    """A JSON file's content. Raises DataError for a file that is not there or is not JSON."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; give {what}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not readable as JSON ({reason}); give {what}") from None


def tables(comparison: Comparison, metric: str) -> list[MetricTable]:
    """A table per regime, methods in the order of their first cell."""
    labels = _labels(comparison.cells)
    return [table for regime in comparison.regimes if (table := _table(comparison, labels, regime, metric)) is not None]


def sweeps(comparison: Comparison) -> list[Sweep]:
    """Per regime, AlterMOMA's mAP after training at the values of beta/alpha that differ in nothing else."""
    return [found for regime in comparison.regimes if (found := _sweep(comparison, regime)) is not None]


# ---- reading -----------------------------------------------------------------------------------------------------


class _Wrong(Exception):
    """What is not as it should be, and where."""


def _list(document: Mapping[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    if not isinstance(value, list):
        raise _Wrong(f"{key} is not a list")
    return value


def _mapping(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key)
    if not isinstance(value, dict):
        raise _Wrong(f"{key} is not an object")
    return value


def _cell(place: str, row: Any) -> Cell:
    if not isinstance(row, dict):
        raise _Wrong(f"{place} is not an object")
    for key, kinds in (("regime", str), ("method", str), ("ratio", (int, float)), ("seed", int)):
        if not isinstance(row.get(key), kinds) or isinstance(row[key], bool):
            raise _Wrong(f"{place}.{key} is {row.get(key)!r}")
    settings = row.get("settings") or {}
    if not isinstance(settings, dict):
        raise _Wrong(f"{place}.settings is not an object")
    states = [None if row.get(s) is None else _metrics(f"{place}.{s}", row[s]) for s in STATES]
    return Cell(row["regime"], row["method"], settings, float(row["ratio"]), row["seed"], *states)


def _metrics(place: str, row: Any) -> dict[str, float]:
    if not isinstance(row, dict):
        raise _Wrong(f"{place} is not an object")
    for metric in METRICS:
        value = row.get(metric)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise _Wrong(f"{place}.{metric} is {value!r}")
    return {metric: float(row[metric]) for metric in METRICS}


# ---- tables ------------------------------------------------------------------------------------------------------


def _table(comparison: Comparison, labels: Mapping[str, str], regime: str, metric: str) -> MetricTable | None:
    cells = [cell for cell in comparison.cells if cell.regime == regime]
    columns = [
        (ratio, state)
        for ratio in sorted({cell.ratio for cell in cells})
        for state in STATES
        if any(cell.ratio == ratio and getattr(cell, state) is not None for cell in cells)
    ]
    names = list(dict.fromkeys(_key(cell) for cell in cells))
    found = {column: {name: _value(cells, name, *column, metric) for name in names} for column in columns}
    best = {c: max((v.mean for v in values.values() if v is not None), default=0.0) for c, values in found.items()}
    rows = [
        MethodRow(
            labels[name],
            [None if (v := found[c][name]) is None else Value(v.values, v.mean == best[c]) for c in columns],
        )
        for name in names
    ]
    dense = comparison.dense.get(regime)
    if not rows and dense is None:
        return None
    seeds = sorted({len(v.values) for row in rows for v in row.values if v is not None})
    return MetricTable(regime, METRICS[metric], columns, rows, None if dense is None else dense[metric], seeds)


def _value(cells: Sequence[Cell], key: str, ratio: float, state: str, metric: str) -> Value | None:
    chosen = [cell for cell in cells if _key(cell) == key and cell.ratio == ratio]
    by_seed = {cell.seed: getattr(cell, state)[metric] for cell in chosen if getattr(cell, state) is not None}
    return Value([by_seed[seed] for seed in sorted(by_seed)]) if by_seed else None


def _key(cell: Cell) -> str:
    return json.dumps([cell.method, cell.settings], sort_keys=True, default=str)


def _labels(cells: Sequence[Cell]) -> dict[str, str]:
    """Key -> the method's name; with the settings that differ where one name has several."""
    variants: dict[str, dict[str, Settings]] = {}
    for cell in cells:
        variants.setdefault(cell.method, {})[_key(cell)] = cell.arguments
    labels = {}
    for method, found in variants.items():
        for key, arguments in found.items():
            differing = {k: v for k, v in arguments.items() if any(o.get(k) != v for o in found.values())}
            told = ", ".join(f"{name} {_short(value)}" for name, value in differing.items()) or "defaults"
            labels[key] = f"{method} ({told})" if len(found) > 1 else method
    return labels


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value)
        else:
            yield name, value


# ---- mAP against beta/alpha --------------------------------------------------------------------------------------


def _sweep(comparison: Comparison, regime: str) -> Sweep | None:
    cells = [cell for cell in comparison.cells if cell.regime == regime and cell.after is not None]
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.criterion == "altermoma" and _weight(cell, "alpha"):
            rest = {name: value for name, value in cell.arguments.items() if name not in WEIGHTS}
            groups.setdefault(json.dumps(rest, sort_keys=True, default=str), []).append(cell)
    group = max(groups.values(), key=lambda g: len({_quotient(cell) for cell in g}), default=[])
    if len({_quotient(cell) for cell in group}) < 2:
        return None
    at_zero = [cell for cell in cells if cell.criterion == "deci" and not cell.arguments]
    use_deci = bool(at_zero) and all(_quotient(cell) != 0 for cell in group)
    curves = []
    for ratio in sorted({cell.ratio for cell in group}):
        values: dict[float, list[float]] = {}
        for cell in group:
            if cell.ratio == ratio and cell.after is not None:
                values.setdefault(_quotient(cell), []).append(cell.after["mean_ap"])
        zero = [cell.after["mean_ap"] for cell in at_zero if cell.ratio == ratio and cell.after is not None]
        if use_deci and zero and len(values) > 1:
            values[0.0] = zero
        if len(values) > 1:
            points = [(x, mean(v), stdev(v) if len(v) > 1 else None) for x, v in sorted(values.items())]
            curves.append(Curve(f"{100 * ratio:g} %", points))
    dense = comparison.dense.get(regime)
    return Sweep(regime, curves, None if dense is None else dense["mean_ap"], use_deci) if curves else None


def _weight(cell: Cell, name: str) -> float:
    value = cell.arguments.get(name, 1.0)
    return float(value) if isinstance(value, (int, float)) else 1.0


def _quotient(cell: Cell) -> float:
    return _weight(cell, "beta") / _weight(cell, "alpha")
