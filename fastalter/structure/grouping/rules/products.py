"""Products of two activations as matrices: attention, by hand or by torch.

Scores are sums over the channels of one head: a head's query and key channels, and the values that the scores weigh,
can only go together, as a whole head. With one head alone the sum is over all channels and nothing of query and key can
go.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastalter.structure.grouping.labels import NOTHING, common_shape, nothing, simplified, strip
from fastalter.structure.grouping.rules.family import Rule, aten, labels_of
from fastalter.structure.grouping.rules.pointwise import meet
from fastalter.structure.grouping.trace import Trace, plain


def product(trace: Trace, left: Tensor, right: Tensor) -> Tensor:
    """Labels of left @ right, from labels [B, I, K] and [B, K, J]: [B, I, J].

    K either is an axis of channels (query times key: a contraction) or one of tokens (weights times values).
    """
    left, right = trace.settled(left), trace.settled(right)
    shape = torch.Size([left.shape[0], left.shape[1], right.shape[2]])
    varies = trace.classes.varies
    rows, columns = varies(left, 1), varies(right, 2)
    if varies(left, 2) or varies(right, 1):
        if rows or columns or not (varies(left, 0) or varies(right, 0)):
            what = "a product over all channels"
            trace.pin(left, what)
            trace.pin(right, what)
            return nothing(shape)
        return _contracted(trace, left, right, shape)
    if rows and columns:
        trace.pin(left, "an outer product of two kinds of channels")
        trace.pin(right, "an outer product of two kinds of channels")
        return nothing(shape)
    one = strip(left).amax(2, keepdim=True)
    other = strip(right).amax(1, keepdim=True)
    both = common_shape(one, other)
    trace.classes.unite(one.expand(both), other.expand(both))
    labels = torch.where(one == NOTHING, other, one)
    of_result = labels.amax(1).expand(shape[0], shape[2])
    trace.class_flops.append((of_result, 2.0 * shape[1] * left.shape[2]))
    return labels.expand(shape)


def _contracted(trace: Trace, left: Tensor, right: Tensor, shape: torch.Size) -> Tensor:
    """One class a head: all of its query and key channels."""
    keys = strip(left).amax(1), strip(right).amax(2)  # [B, K] each
    heads = torch.maximum(keys[0].amax(1), keys[1].amax(1))
    for channels in keys:
        trace.classes.unite(heads[:, None].expand(-1, channels.shape[1]), channels.expand(len(heads), -1))
    trace.contracted.append(torch.unique(heads[heads != NOTHING]))
    trace.class_flops.append((heads.expand(shape[0]), 2.0 * shape[1] * shape[2] * left.shape[2]))
    return simplified(heads[:, None, None].expand(shape))


def _bmm(trace: Trace, func: Any, args: Any, kwargs: Any, value: Tensor) -> Tensor:
    return _added(trace, product(trace, labels_of(args[-2]), labels_of(args[-1])), args, value)


def _mm(trace: Trace, func: Any, args: Any, kwargs: Any, value: Tensor) -> Tensor:
    return _added(trace, product(trace, labels_of(args[-2])[None], labels_of(args[-1])[None])[0], args, value)


def _added(trace: Trace, labels: Tensor, args: Any, value: Tensor) -> Tensor:
    """Of three arguments (baddbmm, addmm) the first meets the product."""
    return meet(trace, [labels, labels_of(args[0])], value.shape) if len(args) == 3 else labels


def attention(trace: Trace, func: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """torch's fused attention [..., heads, tokens, channels of a head], as the two products that it is."""
    out: Tensor = func(*plain((query, key, value, *args)), **plain(kwargs))
    shape = out.shape
    batch = shape[:-2].numel()

    def flat(x: Tensor) -> Tensor:
        labels = labels_of(x)
        return labels.expand(*shape[:-2], *labels.shape[-2:]).reshape(batch, *labels.shape[-2:])

    scores = product(trace, flat(query), flat(key).transpose(1, 2))
    labels = product(trace, scores, flat(value))
    return trace.labelled(out, simplified(labels.reshape(shape)))


RULES: dict[Any, Rule] = {**dict.fromkeys(aten("bmm baddbmm"), _bmm), **dict.fromkeys(aten("mm addmm"), _mm)}
