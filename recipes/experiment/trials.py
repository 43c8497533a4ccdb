"""Trials on the tuning scenes: criteria that the package does not have, so that their numbers can be made again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fastalter.altermoma import Gradients, SharedPasses, Stage
from fastalter.altermoma.reactivation import sgd_step
from fastalter.criteria import Problem, Ranking
from fastalter.criteria.gradients import backward_of, first_batches
from fastalter.criteria.held import HeldTraining
from fastalter.criteria.problem import for_one_ratio
from fastalter.criteria.removal import Removal

ROUNDS, STEPS, LR = 5, 10, 1e-3
"""Those of modalfisher."""


@for_one_ratio
def reactivated_fisher(problem: Problem, *, share: float = 0.2, lr: float = 1e-4, squares: bool = True) -> Ranking:
    """`modalfisher`, but R_m(i) = theta_i^2 E_b[(g_b - g_b at theta_B)^2] with branch m masked in the place of F_m.

    theta_B comes of a step of plain SGD with rate `lr` on every batch of D with m masked, what is gone held at zero,
    anew in every round. squares=False takes ReRI itself, abs(theta_i E_b[g_b - g_b at theta_B]).
    """
    backward = backward_of(problem)
    removal = Removal(problem.layout, problem.options.ratio, ROUNDS)
    training = HeldTraining("reactivated_fisher", problem, backward, removal)
    states = _Reactivated(problem, training, lr)
    for done in range(ROUNDS):
        problem.progress("reactivated_fisher", done, ROUNDS)
        score = removal.next(_score(problem, states, share, squares=squares))
        training.hold()
        if removal.round < ROUNDS:
            training.run(STEPS, LR, lambda: None)
    return Ranking(removal.layout, score)


def _score(problem: Problem, states: _Reactivated, share: float, *, squares: bool) -> Tensor:
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
        model = self._problem.fusion.model
        start: dict[str, list[Gradients]] = {branch: [] for branch in self._problem.fusion.branches}
        before = _values(model)
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
            _put_back(model, before)


def _values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in (*model.named_parameters(), *model.named_buffers())}


@torch.no_grad()
def _put_back(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        value.copy_(values[name])
