"""Training of what is left: steps over the batches D, with what a `Removal` has taken held at zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fastalter import ops
from fastalter.altermoma import Backward, Gradients
from fastalter.criteria.gradients import first_batches
from fastalter.criteria.problem import Problem
from fastalter.criteria.removal import Removal
from fastalter.errors import ScoringError
from fastalter.training import TrainOptions
from fastalter.training.schedule import make_optimizer


class HeldTraining:
    """AdamW as the trainer makes it (decay on matrices alone), at a constant rate, from where the parameters are.

    This is how these networks are trained, and one rate serves a transformer's every depth, which SGD with momentum
    does not.
    """

    def __init__(self, criterion: str, problem: Problem, backward: Backward, removal: Removal) -> None:
        self._criterion = criterion
        self._problem = problem
        self._backward = backward
        self._removal = removal
        self._prunable = {name: w.parameter for name, w in backward.trained.items() if w.prunable}

    def hold(self) -> None:
        """Zero what is gone."""
        self._zero({name: parameter.detach() for name, parameter in self._prunable.items()})

    def run(self, steps: int, lr: float, stepped: Callable[[], None]) -> None:
        """Take `steps` steps with a fresh optimiser, over D in order, again and again; `stepped()` after each.

        The caller holds the parameters first; the steps keep them held.

        Raises:
            ScoringError: the training diverges; names criterion, round and step.
        """
        optimizer, _ = make_optimizer(self._problem.fusion.model, TrainOptions(steps=steps, lr=lr, schedule="constant"))
        for step, (index, batch) in enumerate(first_batches(self._problem, steps), 1):
            try:
                gradients = self.gradients(index, batch)
            except ScoringError as error:
                where = f"{self._criterion}, round {self._removal.round + 1}, step {step}"
                raise ScoringError(f"{where}: {error}; or lower lr") from error
            # Without a gradient a zero weight stays zero: AdamW's moments are zero, and its decay multiplies.
            held = {name: gradients[name].clone() for name in self._prunable if name in gradients}
            self._zero(held)
            gradients.update(held)
            for name, weight in self._backward.trained.items():
                weight.parameter.grad = gradients.get(name)
            optimizer.step()
            stepped()

    def gradients(self, index: int, batch: Any) -> Gradients:
        """What a step follows: dL/dtheta with nothing masked."""
        return self._backward.gradients(self._backward.loss(index, batch, None), self._backward.names(None))

    def _zero(self, by_weight: Mapping[str, Tensor]) -> None:
        bits = self._removal.bits
        if bits is not None and by_weight:
            device = next(iter(by_weight.values())).device
            offsets = [self._removal.layout[name].offset for name in by_weight]
            ops.apply_mask(list(by_weight.values()), bits.to(device), offsets)
