"""Layers, called as functions with their parameters: what they read, what they make, which norms stand behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastalter.structure.grouping.labels import NOTHING, along, nothing
from fastalter.structure.grouping.rules.family import labels_of
from fastalter.structure.grouping.rules.products import attention
from fastalter.structure.grouping.trace import Labelled, Norm, Trace, value_of


def owner(name: str) -> str:
    """The module that a parameter belongs to."""
    return name.rpartition(".")[0]


def linear(trace: Trace, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """Rows of the weight are made, columns are read."""
    name = trace.name_of(weight)
    if name is None:
        return NotImplemented
    value = func(value_of(input), weight, bias)
    trace.read_by(owner(name), name, 1, trace.classes.channels(labels_of(input), input.dim() - 1))
    trace.add_flops(name, 2.0 * value.numel() / max(value.shape[-1], 1))
    made = trace.made_by(owner(name), name, trace.name_of(bias))
    return trace.labelled(value, along(made, value.dim() - 1, value.shape))


def matmul(trace: Trace, func: Any, input: Any, other: Any) -> Any:
    """x @ W with a parameter W [in, out]: a linear layer the other way round."""
    name = trace.name_of(other)
    if name is None or not isinstance(other, nn.Parameter) or other.dim() != 2 or trace.name_of(input) is not None:
        return NotImplemented
    value = func(value_of(input), other)
    trace.read_by(owner(name), name, 0, trace.classes.channels(labels_of(input), input.dim() - 1))
    trace.add_flops(name, 2.0 * value.numel() / max(value.shape[-1], 1))
    return trace.labelled(value, along(trace.made_by(owner(name), name, None, axis=1), value.dim() - 1, value.shape))


def convolution(
    trace: Trace, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> Any:
    """Rows of the weight are made; columns are read, in each group of the convolution."""
    name = trace.name_of(weight)
    if name is None:
        return NotImplemented
    value = func(value_of(input), weight, bias, *args, **kwargs)
    dim = input.dim() - (weight.dim() - 1)
    channels = trace.classes.channels(labels_of(input), dim)
    groups = input.shape[dim] // weight.shape[1]
    trace.add_flops(name, 2.0 * value.numel() / value.shape[dim])
    if groups == input.shape[dim] and groups > 1:
        return _depthwise(trace, name, bias, channels, value, dim)
    made = trace.made_by(owner(name), name, trace.name_of(bias))
    if groups > 1:
        _same_in_each(trace, -made, groups)
    trace.read_by(owner(name), name, 1, _in_each(trace, channels, groups))
    return trace.labelled(value, along(made, dim, value.shape))


def _in_each(trace: Trace, channels: Tensor, groups: int) -> Tensor:
    """The channels that one group of a convolution reads; the same ones of every group go together."""
    if groups == 1:
        return channels
    _same_in_each(trace, channels, groups)
    return channels.view(groups, -1).abs().amax(0)


def _same_in_each(trace: Trace, channels: Tensor, groups: int) -> None:
    table = channels.abs().view(groups, -1)
    trace.classes.unite(table.amax(0).expand_as(table), table)
    if bool((table == NOTHING).any()):
        trace.pin(table, "another group of the convolution reads data that has no channels")


def _depthwise(trace: Trace, name: str, bias: Any, channels: Tensor, value: Tensor, dim: int) -> Tensor:
    """Each channel passes alone (or makes several): it is the same channel after it."""
    ids = trace.axis(name, 0)
    passed = trace.settled(channels).repeat_interleave(len(ids) // len(channels))
    trace.classes.unite(ids, passed)
    trace.pin(ids[passed == NOTHING], "a depthwise convolution of data that has no channels")
    if bias is not None and (bias_name := trace.name_of(bias)):
        trace.classes.unite(ids, trace.axis(bias_name, 0))
    module = trace.model.get_submodule(owner(name))
    trace.count(module, "groups", channels)
    trace.passes[name] = ids
    return trace.labelled(value, along(passed, dim, value.shape))


def transposed_convolution(
    trace: Trace,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """Weight [in, out / groups, ...]: the first axis is read, the second made."""
    name = trace.name_of(weight)
    if name is None:
        return NotImplemented
    value = func(value_of(input), weight, bias, stride, padding, output_padding, groups, dilation)
    dim = input.dim() - (weight.dim() - 1)
    channels = trace.classes.channels(labels_of(input), dim)
    if groups > 1:
        _same_in_each(trace, channels, groups)
    trace.read_by(owner(name), name, 0, channels)
    trace.add_flops(name, 2.0 * value_of(input).numel() / input.shape[dim])
    made = trace.made_by(owner(name), name, trace.name_of(bias) if groups == 1 else None, axis=1)
    if groups > 1:
        made = made.repeat(groups)
        if bias is not None and (bias_name := trace.name_of(bias)):
            trace.classes.unite(made, trace.axis(bias_name, 0))
    return trace.labelled(value, along(made, dim, value.shape))


def batch_norm(
    trace: Trace,
    func: Any,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Channel by channel."""
    names = [trace.name_of(t) for t in (weight, bias, running_mean, running_var)]
    if any(n is None and t is not None for n, t in zip(names, (weight, bias, running_mean, running_var), strict=True)):
        return NotImplemented
    value = func(value_of(input), running_mean, running_var, weight, bias, *args, **kwargs)
    channels = _normed(trace, trace.classes.channels(labels_of(input), 1), names)
    return trace.labelled(value, along(channels, 1, value.shape), lit=weight is None)


def _normed(trace: Trace, channels: Tensor, names: list[str | None]) -> Tensor:
    """The channels behind a norm, whose parameters and statistics (gamma and beta first) go with them."""
    for name in names:
        if name is not None:
            trace.classes.unite(channels, trace.axis(name, 0))
            trace.pin(trace.axis(name, 0)[channels == NOTHING], "a norm over data that has no channels")
    gamma, beta = names[:2]
    if gamma is None:
        return trace.settled(channels)
    sources = torch.where(channels < 0, -channels, NOTHING)
    trace.norms.setdefault(gamma, Norm(owner(gamma), gamma, beta, sources))
    trace.settled(channels.clamp(min=0))
    return channels.abs()


def layer_norm(
    trace: Trace,
    func: Any,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Over the last axis, by an `nn.LayerNorm`: of any other nothing is known."""
    value = func(value_of(input), normalized_shape, weight, bias, *args, **kwargs)
    labels = labels_of(input)
    module = trace.stack[-1] if trace.stack else None
    if len(normalized_shape) != 1 or type(module) is not nn.LayerNorm or id(module) not in trace.paths:
        return _pinned(trace, labels, value, "a layer norm that is no nn.LayerNorm over the last axis")
    return channel_norm(trace, trace.paths[id(module)], input, value, weight, bias)


def channel_norm(
    trace: Trace, path: str, input: Tensor, value: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """A layer norm at `path` over channels: those that stay go on being divided by the number that there was."""
    labels = labels_of(input)
    channels = trace.classes.channels(labels, input.dim() - 1)
    if bool((channels == NOTHING).any()):
        return _pinned(trace, labels, value, "a layer norm over channels and other data together")
    if isinstance(input, Labelled) and input.lit:
        return _pinned(trace, labels, value, "a layer norm over channels that are not zero when they are removed")
    channels = _normed(trace, channels, [trace.name_of(weight), trace.name_of(bias)])
    trace.layer_norms.append((path, channels))
    return trace.labelled(value, along(channels, input.dim() - 1, value.shape), lit=weight is None)


def group_norm(
    trace: Trace,
    func: Any,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """The channels of one of the norm's groups share their statistics: they go together, and the group with them."""
    value = func(value_of(input), num_groups, weight, bias, *args, **kwargs)
    module = trace.stack[-1] if trace.stack else None
    if num_groups == 1 or type(module) is not nn.GroupNorm or id(module) not in trace.paths:
        return _pinned(trace, labels_of(input), value, "a group norm over all channels, or no nn.GroupNorm")
    channels = trace.classes.channels(labels_of(input), 1)
    table = channels.abs().view(num_groups, -1)
    if bool((table == NOTHING).any()):
        return _pinned(trace, labels_of(input), value, "a group norm over channels and other data together")
    trace.classes.unite(table.amax(1, keepdim=True).expand_as(table), table)
    trace.count(module, "num_groups", table.amax(1))
    channels = _normed(trace, channels, [trace.name_of(weight), trace.name_of(bias)])
    return trace.labelled(value, along(channels, 1, value.shape), lit=weight is None)


def prelu(trace: Trace, func: Any, input: Tensor, weight: Tensor) -> Any:
    """A slope per channel, or one for all."""
    name = trace.name_of(weight)
    if name is None:
        return NotImplemented
    labels = trace.settled(labels_of(input))
    if weight.numel() > 1:
        trace.classes.unite(trace.classes.channels(labels, 1), trace.axis(name, 0))
    lit = isinstance(input, Labelled) and input.lit
    return trace.labelled(func(value_of(input), weight), labels, lit)


def _pinned(trace: Trace, labels: Tensor, value: Tensor, why: str) -> Tensor:
    trace.pin(trace.settled(labels), why)
    return value


def canvas(trace: Trace, value: Any) -> Any:
    """A tensor that a forward makes to write into: labels are written with the data."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or isinstance(value, Labelled):
        return value
    return Labelled(value, nothing(value.shape).contiguous(), trace)


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.linear: linear,
    torch.matmul: matmul,
    Tensor.matmul: matmul,
    Tensor.__matmul__: matmul,
    torch.mm: matmul,
    **dict.fromkeys([torch.conv1d, torch.conv2d, torch.conv3d], convolution),
    **dict.fromkeys([torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d], transposed_convolution),
    F.batch_norm: batch_norm,
    F.instance_norm: batch_norm,
    F.layer_norm: layer_norm,
    F.group_norm: group_norm,
    F.prelu: prelu,
    F.scaled_dot_product_attention: attention,
}
FACTORIES = {torch.zeros, torch.empty, torch.full, torch.ones}
PLAIN = {Tensor.numpy, Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.data_ptr}
"""Functions that leave torch: they see plain tensors."""
