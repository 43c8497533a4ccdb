"""Gradients of the loss with nothing masked: batch by batch, and their mean over D in an arena."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice, repeat
from typing import Any

import torch
from torch import Tensor

from fastalter import ops
from fastalter.altermoma import Arena, Backward, Gradients
from fastalter.criteria.problem import Problem


def backward_of(problem: Problem) -> Backward:
    """Losses of this problem's batches, and their gradients."""
    return Backward(problem.fusion, problem.weights, problem.clock, problem.options.seed)


def first_batches(problem: Problem, count: int) -> Iterator[tuple[int, Any]]:
    """`count` batches of D in order with their numbers, starting over where D has no more."""
    return islice(chain.from_iterable(repeat(problem.batches)), count)


def gradients_by_batch(problem: Problem) -> Iterator[Gradients]:
    """dL/dtheta of each batch of D in turn, by parameter name.

    Raises:
        ScoringError: a loss that is not finite or not differentiable; names the batch.
    """
    backward, total = backward_of(problem), len(problem.batches)
    names = backward.names(None)
    problem.progress("gradients", 0, total)
    for index, batch in problem.batches:
        yield backward.gradients(backward.loss(index, batch, None), names)
        problem.progress("gradients", index + 1, total)


def mean_gradients(problem: Problem) -> Arena:
    """An arena whose `grad` is dL/dtheta of the mean loss over D.

    Raises:
        ScoringError: see `gradients_by_batch`, or a gradient that is not finite; names the weight.
    """
    arena = problem.arena()
    with problem.clock.stage("gradients"):
        for gradients in gradients_by_batch(problem):
            arena.grad.add(gradients)
    problem.reinitialise()  # batch norm's running statistics moved
    arena.grad.scale(1 / len(problem.batches))
    arena.check_finite()
    return arena


def sensitivity(arena: Arena, *, normalised: bool) -> tuple[Tensor, Tensor, float]:
    """|theta * grad| [N], divided by its sum over all weights where asked for; its key histogram; that sum."""
    total = float(ops.indicator_sums(arena.theta, arena.grad.flat)[0])
    weight = 1 / total if normalised and total else 1.0
    score = torch.empty_like(arena.theta)
    histogram = torch.zeros(ops.HISTOGRAM_BINS, dtype=torch.int64, device=score.device)
    ops.alter_score(score, histogram, arena.theta, arena.grad.flat, deci_weight=weight)
    return score, histogram, total
