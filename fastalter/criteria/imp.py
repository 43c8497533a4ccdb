"""The criterion `imp`: iterative magnitude pruning (Frankle and Carbin, ICLR 2019, arXiv 1803.03635).

Each round trains what is left, removes the weights of smallest magnitude over all layers, and rewinds the rest, buffers
and optimiser included, to where they started.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastalter import ops
from fastalter.altermoma import Arena, Backward, Gradients
from fastalter.criteria.gradients import backward_of, first_batches
from fastalter.criteria.problem import Problem, Ranking
from fastalter.criteria.removal import Removal
from fastalter.errors import ScoringError
from fastalter.training import TrainOptions
from fastalter.training.schedule import make_optimizer


def imp(problem: Problem, *, rounds: int = 5, steps: int = 20, lr: float = 1e-4) -> Ranking:
    """Scores for the run's ratio alone: |theta| after the last training, of what the rounds before it left.

    rounds  trainings; round r leaves (1 - ratio)^(r / rounds) of the weights
    steps   optimiser steps of each training, over the batches of D in order, again and again
    lr      constant; AdamW as the trainer makes it (decay on matrices alone): this is how these networks are trained,
            and one rate serves a transformer's every depth, which SGD with momentum does not

    Raises:
        ScoringError: a setting out of range, or a training that diverges; names the round.
    """
    if rounds < 1 or steps < 1 or lr <= 0:
        raise ScoringError(f"imp: rounds={rounds}, steps={steps}, lr={lr:g}; give 1 or more, 1 or more, and above 0")
    removal = Removal(Arena(problem.weights, problem.fusion.branch_names).layout, problem.options.ratio, rounds)
    backward = backward_of(problem)
    problem.progress("imp", 0, rounds * steps)
    for _ in range(rounds):
        with problem.clock.stage("imp"):
            _train(problem, backward, removal, steps, lr)
            score = removal.next(_magnitudes(problem, removal))
        problem.reinitialise()
    return Ranking(removal.layout, score, for_ratio=problem.options.ratio)


def _train(problem: Problem, backward: Backward, removal: Removal, steps: int, lr: float) -> None:
    """Train from theta_init with what is gone held at zero."""
    prunable = [name for name, weight in backward.trained.items() if weight.prunable]
    _zero_removed(removal, {name: backward.trained[name].parameter for name in prunable})
    optimizer, _ = make_optimizer(problem.fusion.model, TrainOptions(steps=steps, lr=lr, schedule="constant"))
    for step, (index, batch) in enumerate(first_batches(problem, steps), 1):
        try:
            gradients = backward.gradients(backward.loss(index, batch, None), backward.names(None))
        except ScoringError as error:
            raise ScoringError(f"imp, round {removal.round + 1}, step {step}: {error}; or lower lr") from error
        # Without a gradient a zero weight stays zero: AdamW's moments are zero, and its decay multiplies.
        held = {name: gradients[name].clone() for name in prunable if name in gradients}
        _zero_removed(removal, held)
        _step(optimizer, backward, gradients | held)
        problem.progress("imp", removal.round * steps + step, removal.rounds * steps)


def _step(optimizer: torch.optim.Optimizer, backward: Backward, gradients: Gradients) -> None:
    for name, weight in backward.trained.items():
        weight.parameter.grad = gradients.get(name)
    optimizer.step()


def _zero_removed(removal: Removal, tensors: Mapping[str, Tensor]) -> None:
    """Zero the entries of weights that are gone, by weight name, in place."""
    if removal.bits is not None and tensors:
        device = next(iter(tensors.values())).device
        offsets = [removal.layout[name].offset for name in tensors]
        ops.apply_mask(list(tensors.values()), removal.bits.to(device), offsets)


def _magnitudes(problem: Problem, removal: Removal) -> Tensor:
    score = Arena(problem.weights, problem.fusion.branch_names).theta.abs_()
    if not bool(torch.isfinite(score).all()):
        raise ScoringError(f"imp, round {removal.round + 1}: the training left weights that are not finite; lower lr")
    return score
