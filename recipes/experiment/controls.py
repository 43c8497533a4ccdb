"""Controls: what would happen if ReRI were something that has nothing to do with reactivation."""

from __future__ import annotations

from dataclasses import replace

from fastalter.altermoma import Batches
from fastalter.criteria import CRITERIA, Problem, Ranking
from fastalter.data import Batch


def other_batches_in_place_of_reri(problem: Problem) -> Ranking:
    """S = DeCI on the first half of each batch's samples - DeCI on the other half: two looks at one thing.

    The batches are split by sample, so that both looks have equally many and no sample in common.
    """
    halves = [_half(problem.batches, 0), _half(problem.batches, 1)]
    first, second = (CRITERIA["deci"](replace(problem, batches=Batches(half))) for half in halves)
    return Ranking(first.layout, first.score - second.score)


def _half(batches: Batches, which: int) -> list[Batch]:
    return [_part(batch, slice(which * len(batch) // 2, (which + 1) * len(batch) // 2)) for _, batch in batches]


def _part(batch: Batch, inside: slice) -> Batch:
    return Batch(**{name: value[inside] for name, value in vars(batch).items()})
