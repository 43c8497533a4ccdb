"""What the families of rules share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastalter.fusion.tree import map_tensors, tensors
from fastalter.structure.grouping.labels import nothing
from fastalter.structure.grouping.trace import Labelled, Trace

Rule = Callable[[Trace, Any, Any, Any, Any], Any]
"""rule(trace, func, args, kwargs, value) -> labels of the value, None for none, a list for several tensors."""


def aten(names: str) -> list[Any]:
    """Packets of torch.ops.aten by name; those that this torch does not have are left out."""
    return [getattr(torch.ops.aten, name) for name in names.split() if hasattr(torch.ops.aten, name)]


def arguments(args: Any, kwargs: Any) -> Iterator[Tensor]:
    """Every tensor among an operation's arguments."""
    yield from tensors(args)
    yield from tensors(kwargs)


def first_labelled(args: Any, kwargs: Any) -> Labelled:
    """The first argument with labels."""
    return next(tensor for tensor in arguments(args, kwargs) if isinstance(tensor, Labelled))


def labels_of(tensor: Tensor) -> Tensor:
    """A tensor's labels, all 0 where it has none."""
    return tensor.labels if isinstance(tensor, Labelled) else nothing(tensor.shape)


def as_labels(tree: Any) -> Any:
    """Arguments for running an operation on labels: labels for what has them, everything else on the CPU."""
    return map_tensors(tree, lambda tensor: tensor.labels if isinstance(tensor, Labelled) else tensor.cpu())
