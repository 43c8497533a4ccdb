"""The criterion `magnitude`: the size of a weight as it is, one shot. (Train, prune, rewind, repeat is `imp`.)"""

from __future__ import annotations

from fastalter.altermoma import Arena
from fastalter.criteria.problem import Problem, Ranking


def magnitude(problem: Problem) -> Ranking:
    """S = |theta|. It looks at no batch."""
    arena = Arena(problem.weights, problem.fusion.branch_names)
    with problem.clock.stage("score"):
        return Ranking(arena.layout, arena.theta.abs_())
