"""The criterion `prospr`: sensitivity through the first training steps (Alizadeh et al., ICLR 2022, arXiv 2202.08132).

A mask c multiplies the initial weights; K steps of SGD follow; the score is what c does to the loss after them:

    theta_0 = c * theta,   theta_k+1 = theta_k - lr * dL(theta_k; D_k)/dtheta_k,   S = |dL(theta_K; D_K)/dc| at c = 1

By the chain rule dL/dc = theta * dL/dtheta_0, so that no mask has to be made. The first-order form takes the Jacobians
dtheta_k+1/dtheta_k = 1 - lr * Hessian for 1: it is theta * dL/dtheta_K.

On channels c is a gate: the full form gates the initial network, the first-order form the network at theta_K.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastalter.altermoma import Gradients
from fastalter.criteria.gradients import backward_of, first_batches, sensitivity
from fastalter.criteria.problem import Problem, Ranking
from fastalter.errors import ScoringError

ORDERS = ("auto", "full", "first")


def prospr(problem: Problem, *, steps: int = 3, lr: float = 0.1, order: str = "auto") -> Ranking:
    """Score by the meta-gradient with respect to a mask on the initial weights.

    steps  K, inner steps of plain SGD on every parameter; step k takes batch k of D and the loss after them batch K,
           starting over where D has no more
    lr     of the inner steps
    order  "full": the meta-gradient, Hessians and all; it holds the graphs of K + 1 passes. "first": without the
           Hessian terms. "auto": full where the network can be differentiated twice, else first (sparse convolutions
           cannot); `details["order"]` says which

    Raises:
        ScoringError: a setting out of range, inner steps that diverge, or order="full" for a network that cannot be
            differentiated twice.
    """
    if steps < 0 or lr < 0 or order not in ORDERS:
        raise ScoringError(
            f"prospr: steps={steps}, lr={lr:g}, order={order!r}; give 0 or more, 0 or more, one of {', '.join(ORDERS)}"
        )
    inner = _InnerLoop(problem, steps, lr)
    with problem.clock.stage("prospr"), torch.enable_grad():
        if order != "first":
            order = _possible(order, inner.once_only())
            problem.reinitialise()  # batch norm's running statistics moved
        arena = problem.arena()
        arena.grad.add(*inner.meta_gradient(full=order == "full"))
    arena.check_finite()
    with problem.clock.stage("score"):
        score, histogram, _ = sensitivity(arena, normalised=False)
    return Ranking(arena.layout, score, histogram, {"order": order})


def _possible(order: str, once_only: str | None) -> str:
    """The order to take, given why the network can be differentiated only once."""
    if once_only is None:
        return "full"
    if order == "full":
        raise ScoringError(f"prospr: order='full', but {once_only}; use order='first'")
    return "first"


class _InnerLoop:
    """K steps of SGD from the model's parameters, which themselves stay where they are."""

    def __init__(self, problem: Problem, steps: int, lr: float) -> None:
        self._problem = problem
        self._steps = steps
        self._lr = lr
        self._loss = _LossAt(problem)

    def meta_gradient(self, *, full: bool) -> tuple[Gradients, Gradients]:
        """dL(theta_K)/dtheta_0, or its first-order form dL(theta_K)/dtheta_K, by parameter name; and that theta."""
        differentiate = self._loss.backward.differentiate
        start = theta = self._loss.start()
        with _twice_differentiable_attention() if full else nullcontext():
            for step, (index, batch) in enumerate(first_batches(self._problem, self._steps + 1)):
                self._problem.progress("prospr", step, self._steps + 1)
                loss = self._value(theta, step, index, batch)
                if step == self._steps:
                    break
                gradients = differentiate(loss, theta, create_graph=full)
                theta = {name: value - self._lr * gradients.get(name, 0.0) for name, value in theta.items()}
                if not full:
                    theta = {name: value.detach().requires_grad_() for name, value in theta.items()}
            place = start if full else theta
            found = differentiate(loss, place)
        self._problem.progress("prospr", self._steps + 1, self._steps + 1)
        return found, place

    def once_only(self) -> str | None:
        """Why the loss of the first batch cannot be differentiated twice, found by trying; None where it can."""
        theta = self._loss.start()
        ((index, batch),) = first_batches(self._problem, 1)
        with _twice_differentiable_attention():
            loss = self._value(theta, 0, index, batch)
            try:
                gradients = self._loss.backward.differentiate(loss, theta, create_graph=True).values()
                slopes = [g.sum() for g in gradients if g.requires_grad]
                if slopes:
                    # Not autograd.grad: it would run only what leads to theta, and the node that stands for "once only"
                    # leads nowhere, so that its part would be missing without a word. These leaves are our own.
                    torch.autograd.backward(slopes)
            except RuntimeError as error:
                if not _says_once_only(error):
                    raise
                return str(error).splitlines()[0]
        return None

    def _value(self, theta: Gradients, step: int, index: int, batch: Any) -> Tensor:
        try:
            return self._loss.at(theta, index, batch)
        except ScoringError as error:
            advice = f"; or lower lr={self._lr:g}" if step else ""
            raise ScoringError(f"prospr, after {step} inner steps: {error}{advice}") from error


class _LossAt(nn.Module):
    """The loss as a function of the trained parameters' values: `functional_call` lends them to the model."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.backward = backward_of(problem)
        self.model = problem.fusion.model

    def start(self) -> dict[str, Tensor]:
        """theta_0, in the parameters' own memory, as leaves of a graph."""
        return {name: w.parameter.detach().requires_grad_() for name, w in self.backward.trained.items()}

    def forward(self, index: int, batch: Any) -> Tensor:
        return self.backward.loss(index, batch, None)

    def at(self, theta: dict[str, Tensor], index: int, batch: Any) -> Tensor:
        """L(theta) on a batch."""
        loss: Tensor = functional_call(self, {f"model.{name}": value for name, value in theta.items()}, (index, batch))
        return loss


def _twice_differentiable_attention() -> AbstractContextManager[Any]:
    """torch's fused attention kernels have no second derivative; its plain form has."""
    return sdpa_kernel(SDPBackend.MATH)


def _says_once_only(error: RuntimeError) -> bool:
    text = str(error)
    return "once_differentiable" in text or ("derivative" in text and "not implemented" in text)
