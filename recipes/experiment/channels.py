"""`modalfisher`'s importance on channel groups: one round of it, for its rounds take single weights away."""

from __future__ import annotations

import torch
from torch import Tensor

from fastalter.altermoma import SharedPasses, Stage
from fastalter.altermoma.arena import Accumulator, Arena
from fastalter.criteria import Problem, Ranking


def modalfisher_of_channels(problem: Problem, *, share: float = 0.2) -> Ranking:
    """S = (1 - share) F_0 / sum(F_0) + share mean_m F_m / sum(F_m), F = E_b[(dL_b/dg)^2] of a gate g = 1 on each group.

    F_0 has nothing masked, F_m branch m: the equation of `criteria.modalfisher`, with gates in the place of weights.
    """
    arena = problem.arena()
    passes = SharedPasses(problem.fusion, problem.weights, problem.clock, problem.options.seed)
    squares: dict[Stage, Accumulator] = {}
    with problem.clock.stage("modalfisher"):
        for index, batch in problem.batches:
            for stage, found in passes.at_theta_init(index, batch):
                squares.setdefault(stage, arena.accumulator(skip=stage)).add_squares(found)
    masked = [stage for stage in squares if stage is not None]
    score = _distribution(arena, squares[None], None) * (1 - share)
    for stage in masked:
        score += _distribution(arena, squares[stage], stage) * (share / len(masked))
    return Ranking(arena.layout, score)


def _distribution(arena: Arena, squares: Accumulator, stage: Stage) -> Tensor:
    """F / sum(F) [G]; zero for the masked branch."""
    importance = torch.zeros_like(arena.theta)
    for branch in arena.layout.branches:
        if branch != stage:
            importance[arena.layout.range(branch)] = squares.branch(branch)
    return importance / importance.sum()
