"""What every criterion is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, Literal

from torch import Tensor

from fastalter.altermoma import Arena, Batches, Clock, Layout, Progress, Reactivation, ReriData
from fastalter.errors import ScoringError
from fastalter.fusion import FusionModel, Weight
from fastalter.structure.arena import GateArena
from fastalter.structure.groups import ChannelGroups

Granularity = Literal["weight", "channel"]


@dataclass(frozen=True)
class Options:
    """Settings of a scoring run; a criterion reads those that concern it. See `fastalter.score_model`."""

    reactivation: Reactivation = field(default_factory=Reactivation)
    alpha: float = 1.0
    beta: float = 1.0
    reri_data: ReriData = "paired"
    direct: bool = False
    seed: int = 0
    ratio: float = 0.8
    keep_terms: bool = False


@dataclass(frozen=True)
class Problem:
    """A network ready to be scored: in scoring mode, its gradients on, its state kept elsewhere.

    reinitialise  puts parameters and buffers back to theta_init; a criterion that trains calls it
    groups        what to score in the place of single weights, or None
    """

    fusion: FusionModel
    weights: list[Weight]
    batches: Batches
    options: Options
    reinitialise: Callable[[], None]
    clock: Clock
    progress: Progress
    groups: ChannelGroups | None = None

    @property
    def layout(self) -> Layout:
        """What is scored, in the order of the scores."""
        return self.groups.layout if self.groups is not None else Layout.of(self.weights, self.fusion.branch_names)

    def arena(self) -> Arena:
        """What is scored, and room for its gradients: the prunable weights, or a gate on every channel group."""
        if self.groups is not None:
            return GateArena(self.groups, self.weights, self.fusion.model)
        return Arena(self.weights, self.fusion.branch_names)


@dataclass
class Ranking:
    """What a criterion found: higher means more worth keeping.

    score      [N] over `layout`, float32 or float64
    histogram  of the scores' keys as `ops.alter_score` counts it, or None
    details    JSON-able facts for the artifact
    warnings   one line each
    for_ratio  the only ratio that the scores are good for, where they depend on it (`for_one_ratio` sets it)
    terms      what the score is made of, by name, each [N] like the score; where asked for (`Options.keep_terms`)
    """

    layout: Layout
    score: Tensor
    histogram: Tensor | None = None
    details: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    for_ratio: float | None = None
    terms: dict[str, Tensor] = field(default_factory=dict)


Criterion = Callable[..., Ranking]
"""criterion(problem, **settings) -> Ranking. Settings are keyword arguments with defaults, of plain types."""


def for_one_ratio(criterion: Criterion) -> Criterion:
    """Mark a criterion whose scores are good for the run's ratio alone, since earlier removals made them.

    Only single weights are removed before the mask; scores of channels are good for every ratio.
    """

    @wraps(criterion)
    def marked(problem: Problem, **settings: Any) -> Ranking:
        ranking = criterion(problem, **settings)
        return ranking if problem.groups is not None else replace(ranking, for_ratio=problem.options.ratio)

    marked.__dict__["for_one_ratio"] = True
    return marked


def of_weights_alone(reason: str) -> Callable[[Criterion], Criterion]:
    """Mark a criterion that cannot score channel groups; the reason completes "it cannot score channels: ..."."""

    def mark(criterion: Criterion) -> Criterion:
        criterion.__dict__["of_weights_alone"] = reason
        return criterion

    return mark


def why_of_weights_alone(criterion: Criterion) -> str | None:
    """The reason of the mark; None where there is none."""
    return getattr(criterion, "of_weights_alone", None)


def check_granularity(name: str, known: Mapping[str, Criterion], granularity: str) -> None:
    """Whether the criterion of this name can score at this granularity.

    Raises:
        ScoringError: it cannot; says which can.
    """
    why = why_of_weights_alone(known[name]) if name in known else None
    if granularity == "channel" and why is not None:
        able = ", ".join(other for other, criterion in known.items() if why_of_weights_alone(criterion) is None)
        raise ScoringError(f"method {name!r} cannot score channels: {why}; take one of {able}")


def is_for_one_ratio(criterion: Criterion) -> bool:
    """Whether the criterion has the mark: then its scores cannot be shared between ratios."""
    return bool(getattr(criterion, "for_one_ratio", False))
