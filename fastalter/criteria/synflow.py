"""The criterion `synflow`: synaptic flow (Tanaka et al., NeurIPS 2020, arXiv 2006.05467)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastalter.altermoma import Arena
from fastalter.altermoma.arena import Accumulator
from fastalter.criteria.ones import Forward, forward_of, inputs_of_ones, ones_inside
from fastalter.criteria.problem import Problem, Ranking, for_one_ratio, of_weights_alone
from fastalter.criteria.removal import Removal
from fastalter.errors import ScoringError
from fastalter.fusion.tree import tensors


@of_weights_alone("its flow is a product over single weights, and its rounds take those away")
@for_one_ratio
def synflow(problem: Problem, *, iterations: int = 100, forward: Forward | None = None) -> Ranking:
    """Scores for the run's ratio alone: S = |theta * dR/dtheta| at the last iteration, of what those before it left.

    R is the sum of what the network returns, in eval mode, for inputs of ones, with the absolute value of every entry
    of its state dict, batch norm's statistics included (geometry and integers stay as they are). Iteration e leaves
    (1 - ratio)^(e / iterations) of the weights. All in float64. No data is looked at, but the first batch says what the
    inputs look like; see `inputs_of_ones`.

    iterations  rounds of removal
    forward     forward(model, batch) -> outputs, where model(batch) is not how the network is called

    Raises:
        ScoringError: a setting out of range, a forward that does not take a batch or returns nothing differentiable,
            or a flow that overflows float64.
    """
    if iterations < 1:
        raise ScoringError(f"synflow: iterations={iterations}; give 1 or more")
    with problem.clock.stage("synflow"):
        problem.fusion.model.eval()
        flow = _Flow(problem, forward_of(problem.fusion.model, forward))
        removal = Removal(flow.layout, problem.options.ratio, iterations)
        problem.progress("synflow", 0, iterations)
        for done in range(1, iterations + 1):
            removal.apply(flow.theta)
            score = removal.next(flow.scores())
            problem.progress("synflow", done, iterations)
    return Ranking(removal.layout, score)


class _Flow:
    """R as a function of |theta|, the model itself left alone: `functional_call` lends it other tensors.

    theta  [N] float64, the absolute values; to be masked in place between calls
    """

    def __init__(self, problem: Problem, forward: Forward) -> None:
        self._clock = problem.clock
        self._network = _Network(problem.fusion.model, forward)
        self._batch = inputs_of_ones(next(iter(problem.batches))[1])
        arena = Arena(problem.weights, problem.fusion.branch_names)
        self.layout = arena.layout
        self.theta = arena.theta.double().abs_()
        self._leaves = {
            e.name: self.theta[e.offset : e.offset + e.size].view(e.shape).requires_grad_() for e in self.layout.entries
        }
        self._state = _absolute(problem) | self._leaves

    def scores(self) -> Tensor:
        """|theta * dR/dtheta| [N], float64."""
        with self._clock.network(), torch.enable_grad():
            total = self._network.total(self._state, self._batch)
            flow = torch.autograd.grad(total, list(self._leaves.values()), allow_unused=True)
        gradients = Accumulator(self.layout, self.theta)
        gradients.add({name: grad for name, grad in zip(self._leaves, flow, strict=True) if grad is not None})
        score = gradients.flat.mul_(self.theta).abs_()
        if not bool(torch.isfinite(score).all()):
            raise ScoringError(
                f"synflow: the flow through the network overflows float64 (R = {total.item():g}); "
                "scale its weights down, or use another criterion"
            )
        return score


def _absolute(problem: Problem) -> dict[str, Tensor]:
    """Every floating parameter and buffer in float64; what the state dict holds by its absolute value.

    Geometry that a model stores as parameters keeps its sign: a mirrored frustum would see nothing.
    """
    model = problem.fusion.model
    signed = {w.name for w in problem.weights if not w.learned}
    kept = set(model.state_dict(keep_vars=True))
    state = {}
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point():
            double = value.detach().double()
            state[name] = double.abs() if name in kept and name not in signed else double
    return state


class _Network(nn.Module):
    """R of a model: the sum of every floating tensor that its forward returns."""

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.model = model
        self._forward = forward

    def forward(self, batch: Any) -> Tensor:
        with ones_inside(self.model):
            outputs = [t for t in tensors(self._forward(self.model, batch)) if t.is_floating_point()]
        if not any(t.requires_grad for t in outputs):
            raise ScoringError(
                f"synflow: {type(self.model).__name__}'s forward returns nothing that depends on its weights; "
                "set forward=function(model, batch) that returns the outputs"
            )
        return torch.stack([t.sum().double() for t in outputs]).sum()

    def total(self, state: dict[str, Tensor], batch: Any) -> Tensor:
        """R with these parameters and buffers, by their names in the model."""
        r: Tensor = functional_call(self, {f"model.{name}": value for name, value in state.items()}, (batch,))
        return r
