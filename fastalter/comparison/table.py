"""From finished cells to what a table shows: mean and spread over seeds, and differences paired by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from fastalter.comparison.cell import Result


@dataclass(frozen=True)
class Row:
    """One method in one regime at one ratio.

    values  seed -> the metric after training (or before it)
    """

    regime: str
    method: str
    ratio: float
    values: dict[int, float]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return mean(self.values.values())

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds; None for a single one."""
        return stdev(self.values.values()) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Paired:
    """How far one row is ahead of another, seed by seed.

    difference  mean over the common seeds
    spread      sample standard deviation of the differences; None for a single seed
    p           two-sided paired t-test; None where there is no spread
    """

    seeds: int
    difference: float
    spread: float | None
    p: float | None


def rows(results: Sequence[Result], metric: str = "mean_ap", when: str = "after") -> list[Row]:
    """One row per regime, method and ratio, in the order of first appearance; cells without the metric are left out."""
    table: dict[tuple[str, str, float], dict[int, float]] = {}
    for result in results:
        state: dict[str, Any] | None = result.get(when)
        if state is not None:
            place = (result["regime"], result["method"], result["ratio"])
            table.setdefault(place, {})[result["seed"]] = state[metric]
    return [Row(*place, values) for place, values in table.items()]


def paired(one: Row, other: Row) -> Paired | None:
    """`one` minus `other` over the seeds that both have; None where they share none."""
    seeds = sorted(set(one.values) & set(other.values))
    differences = [one.values[seed] - other.values[seed] for seed in seeds]
    if not differences:
        return None
    spread = stdev(differences) if len(differences) > 1 else None
    return Paired(len(seeds), mean(differences), spread, _p_value(differences, spread))


def _p_value(differences: list[float], spread: float | None) -> float | None:
    if not spread:
        return None
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(differences, 0.0).pvalue)
