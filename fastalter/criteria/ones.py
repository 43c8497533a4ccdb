"""Inputs of ones for every sensor: what a criterion without data feeds a network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from fastalter.data.batch import Batch
from fastalter.errors import FastalterError, ScoringError
from fastalter.fusion.stubs import replaced_forwards
from fastalter.fusion.tree import map_tensors

Forward = Callable[[nn.Module, Any], Any]


def inputs_of_ones(batch: Any) -> Any:
    """A batch like this one, in float64, that says nothing.

    In-tree Batch: its first sample, with images of ones. Its points and matrices stay, since they are geometry: they
    say which voxels are occupied and where the cameras look; `ones_inside` takes the values out of them.
    Anything else: every floating tensor is ones, integers stay. (All samples are alike, so that their number scales R
    and changes no order.)
    """
    if isinstance(batch, Batch):
        sample = Batch(**{f.name: getattr(batch, f.name)[:1] for f in fields(batch)}).to(dtype=torch.float64)
        sample.images = torch.ones_like(sample.images)
        return sample
    return map_tensors(batch, lambda t: torch.ones_like(t, dtype=torch.float64) if t.is_floating_point() else t)


@contextmanager
def ones_inside(model: nn.Module) -> Iterator[None]:
    """Inside the block the in-tree modules that points pass through are fed ones: each occupied voxel's features, and
    each pixel of the depth maps that the view transform makes of the points."""
    from fastalter.models.view_transform import DepthLSS
    from fastalter.models.voxelize import Voxelization

    forwards: dict[str, Callable[..., Any]] = {}
    for path, module in model.named_modules():
        if isinstance(module, Voxelization):
            forwards[path] = _voxels_of_ones(module.forward)
        elif isinstance(module, DepthLSS):
            forwards[f"{path}.dtransform"] = _given_ones(module.dtransform.forward)
    with replaced_forwards(forwards, model):
        yield


def _voxels_of_ones(voxelize: Callable[..., Any]) -> Callable[..., Any]:
    def forward(points: list[Tensor]) -> Any:
        features, coords, batch_size = voxelize(points)
        return torch.ones_like(features), coords, batch_size

    return forward


def _given_ones(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: forward(torch.ones_like(x))


def forward_of(model: nn.Module, forward: Forward | None) -> Forward:
    """How to run the network on a batch: `forward`, else model(batch).

    Raises:
        ScoringError: `forward` cannot be called, or the model's forward does not take a batch and nothing else; later,
            where model(batch) fails.
    """
    name = type(model).__name__
    advice = "set forward=function(model, batch) that returns the network's outputs"
    if forward is not None and not callable(forward):
        raise ScoringError(f"synflow: forward is {forward!r}; {advice}")
    if forward is not None:
        return forward
    try:
        inspect.signature(model.forward).bind(None)
    except TypeError as error:
        raise ScoringError(f"synflow: {name}.forward does not take a batch alone ({error}); {advice}") from error

    def call(network: nn.Module, batch: Any) -> Any:
        try:
            return network(batch)
        except FastalterError:
            raise
        except Exception as error:
            raise ScoringError(f"synflow: {name}.forward(batch) failed ({error}); {advice}") from error

    return call
