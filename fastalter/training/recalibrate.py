"""Batch norm's running statistics measured anew: they lag behind weights that were changed, by pruning above all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastalter.errors import TrainingError
from fastalter.training.guard import in_mode

COUNT = 20
"""Batches that are taken of an endless source."""


def recalibrate(
    model: nn.Module,
    batches: Callable[[int], Any] | Iterable[Any],
    *,
    count: int | None = None,
    part: nn.Module | None = None,
) -> int:
    """Set running means and variances to the plain mean of the batches' own; how many batches that were.

    The norms run in train mode, all else in eval mode and without gradients; each module's mode is put back. A norm
    that no batch reaches keeps its statistics. Upon an exception all of them are what they were.

    Args:
        model: called with each batch, which is moved to its device first if it can be (`batch.to`).
        batches: step -> batch, or an iterable.
        count: how many batches; None: all of an iterable, COUNT of a function.
        part: only the norms of this submodule are measured; the others use their running statistics.

    Raises:
        TrainingError: no batch, or statistics that are not finite, naming the norm.
    """
    if count is not None and count < 1:
        raise TrainingError(f"count is {count}; give at least one batch to measure on")
    norms = {
        name: module
        for name, module in (part or model).named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    done = 0
    with torch.no_grad(), in_mode(model, train=False), _measuring(norms):
        for batch in _taken(batches, count):
            model(batch.to(device) if hasattr(batch, "to") else batch)
            done += 1
        _check(norms, done)
    return done


def _taken(batches: Callable[[int], Any] | Iterable[Any], count: int | None) -> Iterator[Any]:
    if callable(batches):
        return map(batches, range(COUNT if count is None else count))
    return islice(batches, count)


@contextmanager
def _measuring(norms: dict[str, _BatchNorm]) -> Iterator[None]:
    """Fresh cumulative averages in the block; after it the momentum is back, and what was not measured or failed."""
    before = {name: _statistics(norm) for name, norm in norms.items()}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a plain mean over the batches
        norm.train()
    good = False
    try:
        yield
        good = True
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]
            if not good or not _measured(norm):
                _put_back(norm, before[name])


def _statistics(norm: _BatchNorm) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)}


def _put_back(norm: _BatchNorm, statistics: dict[str, Tensor]) -> None:
    for name, value in statistics.items():
        norm.get_buffer(name).copy_(value)


def _measured(norm: _BatchNorm) -> bool:
    return norm.num_batches_tracked is not None and int(norm.num_batches_tracked) > 0


def _check(norms: dict[str, _BatchNorm], done: int) -> None:
    if not done:
        raise TrainingError("no batch to measure batch norm's statistics on; give one or more")
    for name, norm in norms.items():
        for kind, value in (("mean", norm.running_mean), ("variance", norm.running_var)):
            if value is not None and not bool(torch.isfinite(value).all()):
                raise TrainingError(
                    f"{name}: its measured {kind} is not finite, so the statistics are as they were; check the weights"
                )
