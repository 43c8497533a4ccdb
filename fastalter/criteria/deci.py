"""The criterion `deci`: importance with every sensor on, normalised branch by branch (eq. 6; eq. 11 with beta = 0)."""

from __future__ import annotations

from fastalter.altermoma import alter_eva
from fastalter.criteria.gradients import mean_gradients
from fastalter.criteria.problem import Problem, Ranking


def deci(problem: Problem) -> Ranking:
    """S = |theta * dL/dtheta| / its sum over the branch; each branch's scores add up to 1.

    Raises:
        ScoringError: see `mean_gradients`.
    """
    arena = mean_gradients(problem)
    with problem.clock.stage("score"):
        result = alter_eva(arena, alpha=1.0, beta=0.0)  # the arena has no stages, so that DeCI is all there is
    return Ranking(arena.layout, result.score, result.histogram, {"sums": result.sums}, result.warnings)
