"""What a loss function returned, as named scalars; and the search for those that are not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastalter.errors import TrainingError


def loss_terms(losses: Any) -> dict[str, Tensor]:
    """Named scalars whose sum is differentiated; the same rule as `fastalter.fusion.adapt.sum_losses`.

    Args:
        losses: a tensor, named "loss" here, or a mapping whose entries named "...loss..." (tensors or lists of tensors)
            count. What needs no gradient is left out; a tensor that is not a scalar gives its mean.

    Raises:
        TrainingError: nothing differentiable.
    """
    entries = losses if isinstance(losses, Mapping) else {"loss": losses}
    found: dict[str, Tensor] = {}
    for name, value in entries.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        parts = [part.mean() for part in values if isinstance(part, Tensor) and part.requires_grad]
        if "loss" in name and parts:
            found[name] = torch.stack(parts).sum() if len(parts) > 1 else parts[0]
    if not found:
        raise TrainingError(
            "the loss returned nothing differentiable; return a scalar tensor, or a dict with keys like 'loss_bbox'"
        )
    return found


def total_of(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of the terms, in order."""
    first, *others = terms.values()
    for other in others:
        first = first + other
    return first


def not_finite(values: Mapping[str, float]) -> str:
    """ "loss_cls (nan), loss_box (inf)", or nothing where all are finite."""
    return ", ".join(f"{name} ({value})" for name, value in values.items() if not math.isfinite(value))


def finite_tensors(model: nn.Module) -> set[str]:
    """Names of the parameters and persistent buffers that hold floating point numbers, all of them finite."""
    return {
        name
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor) and value.is_floating_point() and bool(torch.isfinite(value).all())
    }
