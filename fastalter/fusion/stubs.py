"""Modality masking without running the masked branch: its top modules are stubbed for the length of a pass.

A stub stands in a module's `forward`, so hooks, names and the parent's references stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastalter.errors import ModelError, ScoringError
from fastalter.fusion.adapt import FusionModel
from fastalter.fusion.tree import copy_of, tensors, zeros_of

Outputs = dict[str, list[Any]]
"""Module path -> what each of its calls returned, in order."""


@contextmanager
def replaced_forwards(forwards: Mapping[str, Callable[..., Any]], model: nn.Module) -> Iterator[None]:
    """Give modules another `forward` inside the block; whatever was there comes back, also after an exception."""
    before: list[tuple[nn.Module, Any]] = []
    try:
        for path, forward in forwards.items():
            module = model.get_submodule(path)
            before.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, own in reversed(before):
            del module.__dict__["forward"]
            if own is not None:
                module.__dict__["forward"] = own


@contextmanager
def recorded(fusion: FusionModel) -> Iterator[Outputs]:
    """Run every branch for real and keep what its top modules return, graph and all.

    The consumers of an outlet get a copy, so that one that works in place cannot change the record.
    """
    record: Outputs = {}
    exits = set(fusion.outlets.values())

    def recording(path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            record.setdefault(path, []).append(output)
            return copy_of(output) if path in exits else output

        return run

    tops = [item for branch in fusion.branches for item in fusion.modules_of(branch)]
    with replaced_forwards({path: recording(path, module.forward) for path, module in tops}, fusion.model):
        yield record
    _check_record(fusion, record)


def _check_record(fusion: FusionModel, record: Outputs) -> None:
    for branch, outlet in fusion.outlets.items():
        if outlet not in record:
            raise ModelError(
                f"outlets[{branch!r}]: {outlet!r} was not called by the loss; name a module whose forward runs"
            )
        if not any(t.is_floating_point() for output in record[outlet] for t in tensors(output)):
            kind = type(record[outlet][0]).__name__
            raise ModelError(
                f"outlets[{branch!r}]: {outlet!r} returned a {kind} without floating tensors; it carries no feature"
            )


def branch_zeros(fusion: FusionModel, record: Outputs, branch: str) -> Outputs:
    """What the branch returns when it is masked: zeros of the recorded shapes, in no memory.

    Kept for every batch of D: a coordinate table a batch would not fit for a whole dataset, so that only the outlet,
    whose consumer runs, keeps its integers.
    """
    outlet, paths = fusion.outlets[branch], [path for path, _ in fusion.modules_of(branch) if path in record]
    return {path: [zeros_of(output, keep_integers=path == outlet) for output in record[path]] for path in paths}


def branch_outputs(fusion: FusionModel, record: Outputs, branch: str) -> Outputs:
    """What the branch returned when it was recorded."""
    return {path: record[path] for path, _ in fusion.modules_of(branch) if path in record}


@contextmanager
def replayed(fusion: FusionModel, outputs: Outputs) -> Iterator[None]:
    """Let modules return given outputs, call by call, instead of running."""

    def replaying(path: str, calls: list[Any]) -> Callable[..., Any]:
        queue = iter(calls)

        def run(*_args: Any, **_kwargs: Any) -> Any:
            try:
                return copy_of(next(queue))
            except StopIteration:
                raise ScoringError(
                    f"{path} ran more often than in the first pass ({len(calls)}x); a loss must call it equally often"
                ) from None

        return run

    with replaced_forwards({path: replaying(path, calls) for path, calls in outputs.items()}, fusion.model):
        yield


def first_tensor(outputs: list[Any]) -> Tensor | None:
    """The feature of an outlet that was called once and returned one tensor; None where it is anything else."""
    return outputs[0] if len(outputs) == 1 and isinstance(outputs[0], torch.Tensor) else None
