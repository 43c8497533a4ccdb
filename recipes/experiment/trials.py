"""Trials on the tuning scenes: criteria that the package does not have, so that their numbers can be made again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any, Protocol

import torch
from torch import Tensor

from fastalter.altermoma import Gradients, SharedPasses, Stage
from fastalter.altermoma.reactivation import sgd_step
from fastalter.criteria import Problem, Ranking
from fastalter.criteria.gradients import backward_of, first_batches
from fastalter.criteria.held import HeldTraining
from fastalter.criteria.problem import for_one_ratio
from fastalter.criteria.removal import Removal
from fastalter.fusion.preserve import Snapshot

ROUNDS, STEPS, LR = 5, 10, 1e-3
"""Those of modalfisher."""


@for_one_ratio
def reactivated_fisher(problem: Problem, *, share: float = 0.2, lr: float = 1e-4, squares: bool = True) -> Ranking:
    """`modalfisher`, but R_m(i) = theta_i^2 E_b[(g_b - g_b at theta_B)^2] with branch m masked in the place of F_m.

    theta_B comes of a step of plain SGD with rate `lr` on every batch of D with m masked, what is gone held at zero,
    anew in every round. squares=False takes ReRI itself, abs(theta_i E_b[g_b - g_b at theta_B]).
    """
    removal = Removal(problem.layout, problem.options.ratio, ROUNDS)
    training = HeldTraining("reactivated_fisher", problem, backward_of(problem), removal)
    states = _Reactivated(problem, training, lr)
    return _in_rounds(problem, removal, training, states, share, squares=squares)


@for_one_ratio
def alternating_fisher(problem: Problem, *, share: float = 0.2) -> Ranking:
    """`modalfisher`, but the steps between its rounds alternate: nothing masked, then each branch masked, in turn.

    So each sensor learns to do without the other before F_m asks what it does then.
    """
    removal = Removal(problem.layout, problem.options.ratio, ROUNDS)
    states = _Masked(problem)
    training = _AlternatingTraining(problem, removal, states.passes)
    return _in_rounds(problem, removal, training, states, share)


class _States(Protocol):
    def gradients(self) -> Iterator[tuple[Stage, Gradients]]:
        """What a state, nothing masked or a branch, puts into its importance; batch by batch."""


def _in_rounds(
    problem: Problem, removal: Removal, training: HeldTraining, states: _States, share: float, *, squares: bool = True
) -> Ranking:
    for done in range(ROUNDS):
        problem.progress("rounds", done, ROUNDS)
        score = removal.next(_score(problem, states, share, squares=squares))
        training.hold()
        if removal.round < ROUNDS:
            training.run(STEPS, LR, lambda: None)
    return Ranking(removal.layout, score)


def _score(problem: Problem, states: _States, share: float, *, squares: bool) -> Tensor:
    """S [N] of what is left: a weight that is gone is zero, so its score is."""
    arena = problem.arena()
    sums = {stage: arena.accumulator(skip=stage) for stage in (None, *problem.fusion.branches)}
    for stage, gradients in states.gradients():
        (sums[stage].add_squares if squares or stage is None else sums[stage].add)(gradients)
    score = torch.zeros_like(arena.theta)
    for stage, found in sums.items():
        whole = torch.zeros_like(arena.theta)
        for branch in arena.layout.branches:
            if branch != stage:
                whole[arena.layout.range(branch)] = found.branch(branch)
        importance = whole * arena.theta**2 if squares or stage is None else (whole * arena.theta).abs()
        weight = 1 - share if stage is None else share / len(problem.fusion.branches)
        score += importance * (weight / (float(importance.sum(dtype=torch.float64)) or 1.0))
    return score


class _Masked:
    """Per batch: the gradients with nothing masked, and with each branch masked."""

    def __init__(self, problem: Problem) -> None:
        self.passes = SharedPasses(problem.fusion, problem.weights, problem.clock, problem.options.seed)
        self._problem = problem

    def gradients(self) -> Iterator[tuple[Stage, Gradients]]:
        for index, batch in self._problem.batches:
            yield from self.passes.at_theta_init(index, batch)


class _AlternatingTraining(HeldTraining):
    """Takes its steps with nothing masked, then each branch, in turn."""

    def __init__(self, problem: Problem, removal: Removal, passes: SharedPasses) -> None:
        super().__init__("alternating_fisher", problem, backward_of(problem), removal)
        self._passes = passes
        self._masks = cycle([None, *problem.fusion.branches])

    def gradients(self, index: int, batch: Any) -> Gradients:
        masked = next(self._masks)
        return super().gradients(index, batch) if masked is None else self._passes.masked(masked, index, batch)


class _Reactivated:
    """Per batch: the gradients with nothing masked, and with each branch masked what reactivation changes in them."""

    def __init__(self, problem: Problem, training: HeldTraining, lr: float) -> None:
        self._problem = problem
        self._training = training
        self._lr = lr
        self._passes = SharedPasses(problem.fusion, problem.weights, problem.clock, problem.options.seed)
        self._trained = {w.name: w.parameter for w in problem.weights if w.parameter.requires_grad}

    def gradients(self) -> Iterator[tuple[Stage, Gradients]]:
        """Parameters and buffers are as they were when it is through."""
        start: dict[str, list[Gradients]] = {branch: [] for branch in self._problem.fusion.branches}
        before = Snapshot(self._problem.fusion.model)
        for index, batch in self._problem.batches:
            for stage, found in self._passes.at_theta_init(index, batch):
                if stage is None:
                    yield stage, found
                else:
                    start[stage].append(found)
        for branch, first in start.items():
            for index, batch in first_batches(self._problem, len(first)):
                sgd_step(self._trained, self._passes.masked(branch, index, batch), self._lr)
                self._training.hold()
            for index, batch in self._problem.batches:
                end = self._passes.masked(branch, index, batch)
                yield branch, {name: first[index][name] - gradient for name, gradient in end.items()}
            before.restore_tensors()
