"""The criterion `magnitude`: the size of a weight as it is, one shot. (Train, prune, rewind, repeat is `imp`.)"""

from __future__ import annotations

from fastalter.criteria.problem import Problem, Ranking


def magnitude(problem: Problem) -> Ranking:
    """S = |theta|; of a channel group the L2 norm over every parameter entry that leaves with it. It looks at no batch.

    Groups of more entries have larger norms: nothing is divided by their number.
    """
    arena = problem.arena()
    with problem.clock.stage("score"):
        return Ranking(arena.layout, arena.magnitudes())
