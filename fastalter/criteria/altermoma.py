"""The criterion `altermoma`: Algorithm 1, then AlterEva (docs/method.md; NeurIPS 2024)."""

from __future__ import annotations

from fastalter.altermoma import AlternateMasking, DirectPasses, SharedPasses, alter_eva
from fastalter.criteria.problem import Problem, Ranking


def altermoma(problem: Problem) -> Ranking:
    """Score every weight of P by DeCI - ReRI (eq. 11 to 13); the terms are "deci" and "reri", both normalised.

    Channel groups likewise: DeCI = |dL/dm|, ReRI = |dL_start/dm - dL_end/dm| of a gate m on each.

    Raises:
        ScoringError: too few batches, a loss or gradient that is not finite, or (direct form) a masked branch that
            does not return zero.
    """
    options, fusion = problem.options, problem.fusion
    with problem.clock.stage("arena"):
        arena = problem.arena()
    passes = (DirectPasses if options.direct else SharedPasses)(fusion, problem.weights, problem.clock, options.seed)
    AlternateMasking(
        branches=list(fusion.branches),
        passes=passes,
        parameters={w.name: w.parameter for w in problem.weights if w.parameter.requires_grad},
        reinitialise=problem.reinitialise,
        reactivation=options.reactivation,
        reri_data=options.reri_data,
        reuse_first=not options.direct,
    ).run(arena, problem.batches, problem.clock, problem.progress)
    with problem.clock.stage("score"):
        result = alter_eva(arena, options.alpha, options.beta, keep_terms=options.keep_terms)
    ranking = Ranking(arena.layout, result.score, result.histogram, {"sums": result.sums}, result.warnings)
    if result.deci is not None and result.reri is not None:
        ranking.terms = {"deci": result.deci, "reri": result.reri}
    return ranking
