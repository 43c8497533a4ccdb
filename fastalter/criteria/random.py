"""The criterion `random`: the control that every other one has to beat."""

from __future__ import annotations

import torch

from fastalter.criteria.problem import Problem, Ranking


def random(problem: Problem) -> Ranking:
    """S is uniform in [0, 1), drawn from the run's seed alone: the same bits on every device."""
    arena = problem.arena()
    generator = torch.Generator().manual_seed(problem.options.seed)
    with problem.clock.stage("score"):
        score = torch.rand(arena.layout.size, generator=generator, dtype=arena.theta.dtype)
    return Ranking(arena.layout, score.to(arena.theta.device))
