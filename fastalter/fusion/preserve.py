"""Borrow a model and give it back bitwise: parameters, buffers, gradients, flags, random state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastalter.training.rng import preserved_rng

Bn = Literal["train", "frozen"]


class Snapshot:
    """What a model was. `restore_tensors` puts theta and buffers back; `restore` puts everything back."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [(p, p.detach().clone()) for p in model.parameters()]
        self._grads = [(p, p.grad) for p in model.parameters()]
        self._requires_grad = [(p, p.requires_grad) for p in model.parameters()]
        self._training = [(m, m.training) for m in model.modules()]
        self._buffers = [
            (module, name, buffer, None if buffer is None else buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
        ]

    @torch.no_grad()
    def restore_tensors(self) -> None:
        """theta <- theta_init; buffers likewise (Algorithm 1's reinitialisation)."""
        for parameter, theta in self._parameters:
            _put(parameter, theta)
        for module, name, buffer, value in self._buffers:
            module._buffers[name] = buffer
            if buffer is not None and value is not None:
                _put(buffer, value)

    def restore(self) -> None:
        """Everything as it was, references included."""
        self.restore_tensors()
        for parameter, required in self._requires_grad:
            parameter.requires_grad_(required)
        for parameter, grad in self._grads:
            parameter.grad = grad
        for module, training in self._training:
            module.training = training


def _put(tensor: Tensor, value: Tensor) -> None:
    # An untouched tensor keeps its version counter: a graph that its owner still holds stays valid.
    if not _same_bits(tensor, value):
        tensor.copy_(value)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point() or a.is_complex():
        return torch.equal(a, b)
    as_integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(a.element_size(), torch.int8)
    return torch.equal(a.detach().view(as_integer), b.view(as_integer))


@contextmanager
def preserved(model: nn.Module) -> Iterator[Snapshot]:
    """Everything about the model, and the random state of the process, is after the block what it was before."""
    snapshot = Snapshot(model)
    with preserved_rng():
        try:
            yield snapshot
        finally:
            snapshot.restore()


def scoring_mode(model: nn.Module, bn: Bn) -> None:
    """Train mode, as the loss expects, without randomness: dropout and stochastic depth off, BN as asked."""
    model.train()
    for module in model.modules():
        if _is_random(module) or (bn == "frozen" and isinstance(module, _BatchNorm)):
            module.training = False


def _is_random(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):  # its dropout is a number, not a module
        return bool(module.dropout > 0)
    name = type(module).__name__.lower()
    return "drop" in name or "stochasticdepth" in name


def require_grad(parameters: Sequence[nn.Parameter]) -> None:
    """Let autograd see parameters that a config froze; `Snapshot.restore` freezes them again."""
    for parameter in parameters:
        parameter.requires_grad_(True)
