"""The criterion `snip`: connection sensitivity (Lee et al., ICLR 2019, arXiv 1810.02340), of trained weights."""

from __future__ import annotations

from fastalter.criteria.gradients import mean_gradients, sensitivity
from fastalter.criteria.problem import Problem, Ranking


def snip(problem: Problem) -> Ranking:
    """S = |theta * dL/dtheta| / its sum over all weights: |dL/dc| of a mask c on the weights, at c = 1.

    The gradient is taken over all batches before the absolute value. The one difference from `deci` is the normaliser:
    here a branch whose gradients are large gets a large share.

    Raises:
        ScoringError: see `mean_gradients`.
    """
    arena = mean_gradients(problem)
    with problem.clock.stage("score"):
        score, histogram, total = sensitivity(arena, normalised=True)
    warnings = [] if total else ["no gradient reaches any weight: every score is 0"]
    return Ranking(arena.layout, score, histogram, {"sum": total}, warnings)
