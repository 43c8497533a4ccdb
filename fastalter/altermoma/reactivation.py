"""Reactivation: train what is left while one branch is masked (eq. 16), so that redundant copies come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastalter.errors import ScoringError


@dataclass(frozen=True)
class Reactivation:
    """B steps of plain SGD on the first B batches.

    batches  B, how many batches drive the reactivation, one step each
    lr       learning rate of eq. 16
    """

    batches: int = 5
    lr: float = 1e-4

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise ScoringError(f"reactivation: batches is {self.batches}; at least 1 is needed")
        if not 0 <= self.lr < float("inf"):
            raise ScoringError(f"reactivation: lr is {self.lr}; give a finite number >= 0")


@torch.no_grad()
def sgd_step(parameters: Mapping[str, nn.Parameter], gradients: Mapping[str, Tensor], lr: float) -> None:
    """theta <- theta - lr * dL/dtheta, for every parameter that got a gradient (eq. 16)."""
    names = list(gradients)
    if names:
        torch._foreach_add_([parameters[n] for n in names], [gradients[n] for n in names], alpha=-lr)
