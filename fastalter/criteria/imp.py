"""The criterion `imp`: iterative magnitude pruning (Frankle and Carbin, ICLR 2019, arXiv 1803.03635).

Each round trains what is left, removes the weights of smallest magnitude over all layers, and rewinds the rest, buffers
and optimiser included, to where they started.
"""

from __future__ import annotations

from itertools import count

import torch
from torch import Tensor

from fastalter.altermoma import Arena
from fastalter.criteria.gradients import backward_of
from fastalter.criteria.held import HeldTraining
from fastalter.criteria.problem import Problem, Ranking, for_one_ratio, of_weights_alone
from fastalter.criteria.removal import Removal
from fastalter.errors import ScoringError


@of_weights_alone("its rounds take single weights away")
@for_one_ratio
def imp(problem: Problem, *, rounds: int = 5, steps: int = 20, lr: float = 1e-4) -> Ranking:
    """Scores for the run's ratio alone: |theta| after the last training, of what the rounds before it left.

    rounds  trainings; round r leaves (1 - ratio)^(r / rounds) of the weights
    steps   optimiser steps of each training, over the batches of D in order, again and again
    lr      constant; AdamW, see `HeldTraining`

    Raises:
        ScoringError: a setting out of range, or a training that diverges; names the round.
    """
    if rounds < 1 or steps < 1 or lr <= 0:
        raise ScoringError(f"imp: rounds={rounds}, steps={steps}, lr={lr:g}; give 1 or more, 1 or more, and above 0")
    removal = Removal(Arena(problem.weights, problem.fusion.branch_names).layout, problem.options.ratio, rounds)
    training = HeldTraining("imp", problem, backward_of(problem), removal)
    total, done = rounds * steps, count(1)
    problem.progress("imp", 0, total)
    for _ in range(rounds):
        with problem.clock.stage("imp"):
            training.hold()
            training.run(steps, lr, lambda: problem.progress("imp", next(done), total))
            score = removal.next(_magnitudes(problem, removal))
        problem.reinitialise()
    return Ranking(removal.layout, score)


def _magnitudes(problem: Problem, removal: Removal) -> Tensor:
    score = Arena(problem.weights, problem.fusion.branch_names).theta.abs_()
    if not bool(torch.isfinite(score).all()):
        raise ScoringError(f"imp, round {removal.round + 1}: the training left weights that are not finite; lower lr")
    return score
