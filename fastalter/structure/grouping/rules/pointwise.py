"""Pointwise operations: where two labelled elements meet, their channels are one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastalter.structure.grouping.conditions import Tie
from fastalter.structure.grouping.labels import NOTHING, common_shape, strip
from fastalter.structure.grouping.rules.family import Rule, arguments, aten, labels_of
from fastalter.structure.grouping.trace import Trace

_UNTAGGED = set(
    aten(
        "hardswish hardswish_ hardsigmoid hardsigmoid_ hardtanh hardtanh_ mish mish_ softplus elu elu_ celu selu "
        "leaky_relu leaky_relu_ threshold threshold_ log_sigmoid_forward softshrink hardshrink clamp_min clamp_max "
        "relu6 where masked_fill masked_fill_ native_dropout nan_to_num rsub _prelu_kernel bernoulli erfinv"
    )
)


def rule_for(func: Any) -> Rule | None:
    """The rule, if torch says that the operation is pointwise, or this module does."""
    if torch.Tag.pointwise in func.tags or func.overloadpacket in _UNTAGGED:
        return pointwise
    return None


def pointwise(trace: Trace, func: Any, args: Any, kwargs: Any, value: Any) -> Tensor:
    shape = value[0].shape if isinstance(value, tuple) else value.shape
    return meet(trace, [labels_of(tensor) for tensor in arguments(args, kwargs)], shape)


def meet(trace: Trace, several: list[Tensor], shape: torch.Size, *, constants: bool = False) -> Tensor:
    """Labels of a tensor of this shape, each element of which comes from one element of each argument.

    An argument that has numbers of its own along the channels of another, and no channels, ties those down: it would
    not shrink with them. One that is repeated along them (size 1) does no harm, nor any where `constants` is set.
    """
    several = [_lifted(trace.settled(labels), len(shape)) for labels in several]
    met = torch.zeros([1] * len(shape), dtype=torch.int32)
    for labels in several:
        if not bool((labels != NOTHING).any()):
            continue
        short = strip(labels)
        if _crosswise(trace, met, short):
            trace.pin(met, "an outer product of two kinds of channels")
            trace.pin(short, "an outer product of two kinds of channels")
            return torch.zeros((), dtype=torch.int32).expand(shape)
        both = common_shape(met, short)
        trace.classes.unite(met.expand(both), short.expand(both))
        met = torch.where(met == NOTHING, short, met)
    if not constants:
        trace.conditions += [Tie(met, labels, trace.here) for labels in several if _may_tie(met, labels)]
    return met.expand(shape)


def _lifted(labels: Tensor, dims: int) -> Tensor:
    """With as many dimensions as the result, as broadcasting has it."""
    return labels[(None,) * (dims - labels.dim())]


def _axes(trace: Trace, labels: Tensor) -> set[int]:
    return {dim for dim in range(labels.dim()) if trace.classes.varies(labels, dim)}


def _crosswise(trace: Trace, left: Tensor, right: Tensor) -> bool:
    """Whether channels of one lie along axes where the other is one and the same, and the other way round."""
    a, b = _axes(trace, left), _axes(trace, right)
    return bool(a) and bool(b) and not a & b


def _may_tie(met: Tensor, labels: Tensor) -> bool:
    return any(n > 1 and m > 1 for n, m in zip(labels.shape, met.shape, strict=True)) and bool(
        (strip(labels) == NOTHING).any()
    )
