"""The criterion `modalfisher`, our own: Fisher importance over the modality masks, in rounds (docs/method.md).

    F_m(i) = theta_i^2 E_b[(dL_b/dtheta_i)^2]    with branch m masked; F_0 with nothing masked
    S      = (1 - share) F_0 / sum(F_0) + share mean_m F_m / sum(F_m)

What a sensor's weights do when the other sensor is gone counts as importance. After each round the lowest go, and what
is left is trained for a few steps before it is scored again: a weight that can take over is seen taking over.

Of a channel group theta is the gate m = 1, and there is one round: what a layer is left with depends on the budget,
which the mask brings.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor

from fastalter.altermoma import Backward, DirectPasses, Gradients, SharedPasses, Stage
from fastalter.altermoma.arena import Accumulator
from fastalter.criteria.gradients import backward_of
from fastalter.criteria.held import HeldTraining
from fastalter.criteria.problem import Problem, Ranking, for_one_ratio
from fastalter.criteria.removal import Removal
from fastalter.errors import ScoringError


@for_one_ratio
def modalfisher(
    problem: Problem, *, rounds: int | None = None, share: float = 0.2, steps: int = 10, lr: float = 1e-3
) -> Ranking:
    """S of the last round, of what the rounds before it left: of single weights good for the run's ratio alone.

    rounds  scorings; after round r (1 - ratio)^(r / rounds) of the weights are left. None: 5; of channels 1, no other
    share   in [0, 1], of the masked states in S; 0 never masks a branch and is plain Fisher importance
    steps   of training between two rounds, with nothing masked, over the batches of D in order, again and again;
            0 scores theta_init itself each time
    lr      of these steps, constant; AdamW, see `HeldTraining`

    Raises:
        ScoringError: a setting out of range, a loss or gradient that is not finite, or a training that diverges; names
            the round.
    """
    rounds = _rounds(rounds, problem)
    if rounds < 1 or not 0 <= share <= 1 or steps < 0 or lr <= 0:
        raise ScoringError(
            f"modalfisher: rounds={rounds}, share={share:g}, steps={steps}, lr={lr:g}; "
            "give 1 or more, between 0 and 1, 0 or more, and above 0"
        )
    backward = backward_of(problem)
    removal = Removal(problem.layout, problem.options.ratio, rounds)
    training = HeldTraining("modalfisher", problem, backward, removal)
    states = _States(problem, backward, share)
    total, done = rounds * len(problem.batches) + (rounds - 1) * steps, count(1)

    def stepped() -> None:
        problem.progress("modalfisher", next(done), total)

    problem.progress("modalfisher", 0, total)
    for _ in range(rounds):
        with problem.clock.stage("modalfisher"):
            importance = _Importance(problem, removal)
            for index, batch in problem.batches:
                importance.add(states.gradients(index, batch))
                stepped()
            score = removal.next(importance.score(share))
            training.hold()
            if removal.round < rounds and steps:
                training.run(steps, lr, stepped)
    warnings = [] if bool(score.max() > 0) else ["no gradient reaches any weight: every score is 0"]
    return Ranking(removal.layout, score, details={"rounds": rounds}, warnings=warnings)


def _rounds(given: int | None, problem: Problem) -> int:
    if given is None:
        return 5 if problem.groups is None else 1
    if not isinstance(given, int):
        raise ScoringError(f"modalfisher: rounds is {given!r}; give an integer, such as 5")
    if given > 1 and problem.groups is not None:
        raise ScoringError(f"modalfisher: rounds={given}; rounds take single weights away, channels are scored once")
    return given


class _States:
    """Gradients at the parameters as they are: with nothing masked, and each branch masked (share > 0)."""

    def __init__(self, problem: Problem, backward: Backward, share: float) -> None:
        form = DirectPasses if problem.options.direct else SharedPasses
        self._masked = form(problem.fusion, problem.weights, problem.clock, problem.options.seed) if share else None
        self._backward = backward

    def gradients(self, index: int, batch: Any) -> Iterator[tuple[Stage, Gradients]]:
        if self._masked is not None:
            yield from self._masked.at_theta_init(index, batch)
        else:
            loss = self._backward.loss(index, batch, None)
            yield None, self._backward.gradients(loss, self._backward.names(None))


class _Importance:
    """F of every state, summed over batches."""

    def __init__(self, problem: Problem, removal: Removal) -> None:
        self._arena = problem.arena()
        self._removal = removal
        self._squares: dict[Stage, Accumulator] = {}

    def add(self, gradients: Iterator[tuple[Stage, Gradients]]) -> None:
        """One batch's gradients by state."""
        for stage, found in gradients:
            if stage not in self._squares:
                self._squares[stage] = self._arena.accumulator(skip=stage)
            self._squares[stage].add_squares(found)

    def score(self, share: float) -> Tensor:
        """S [N]."""
        self._check_finite()
        masked = [stage for stage in self._squares if stage is not None]
        score = self._distribution(None) * (1 - share if masked else 1.0)
        for stage in masked:
            score += self._distribution(stage) * (share / len(masked))
        return score

    def _distribution(self, stage: Stage) -> Tensor:
        """F / sum(F) [N]; zero for the masked branch, and for what is gone, whose theta is zero."""
        squares, layout = self._squares[stage], self._arena.layout
        importance = torch.zeros_like(self._arena.theta)
        for branch in layout.branches:
            if branch != stage:
                inside = layout.range(branch)
                importance[inside] = self._arena.theta[inside] ** 2 * squares.branch(branch)
        total = float(importance.sum(dtype=torch.float64))
        return importance / total if total else importance

    def _check_finite(self) -> None:
        for stage, squares in self._squares.items():
            name = squares.first_not_finite()
            if name is not None:
                where = f"with {stage} masked" if stage else "with nothing masked"
                raise ScoringError(
                    f"modalfisher, round {self._removal.round + 1}: {name}: the square of its gradient {where} "
                    "is not finite; lower lr, or check the batches"
                )
