"""Operations along axes that are not channels: pooling, resampling, means over space, softmax over tokens.

Along an axis where channels differ they would mix them: then those channels stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastalter.structure.grouping.labels import NOTHING, along, common_shape, nothing, strip
from fastalter.structure.grouping.rules.family import Rule, aten, labels_of
from fastalter.structure.grouping.trace import Trace


def _over_space(trace: Trace, func: Any, args: Any, kwargs: Any, value: Any) -> Tensor:
    """Each element of the result is made of a window over the last axes of its own channel."""
    labels = trace.settled(labels_of(args[0]))
    out = value[0] if isinstance(value, tuple) else value
    spatial = int(re.search(r"(\d)d", str(func))[1])  # type: ignore[index]
    for dim in range(out.dim() - spatial, out.dim()):
        labels = _united_along(trace, labels, dim)
    return labels.expand(out.shape)


def _united_along(trace: Trace, labels: Tensor, dim: int) -> Tensor:
    """Size 1 along the axis: what lay along it is one channel now."""
    short = strip(labels)
    if short.shape[dim] == 1:
        return short
    highest = short.amax(dim, keepdim=True)
    trace.classes.unite(highest.expand_as(short), short)
    return highest


_ORDER_FIRST = set(aten("linalg_vector_norm norm"))
"""Reductions that take the norm's order before the axes."""


def _dims(func: Any, args: Any, kwargs: Any, ndim: int) -> list[int]:
    place = 2 if func.overloadpacket in _ORDER_FIRST else 1
    given = args[place] if len(args) > place else kwargs.get("dim")
    if given is None or (isinstance(given, (list, tuple)) and not given):
        return list(range(ndim))
    listed: Iterable[int] = given if isinstance(given, (list, tuple)) else [given]
    return [dim % ndim for dim in listed]


def _plain_name(func: Any) -> str:
    return str(func.overloadpacket).removeprefix("aten.").strip("_").replace("_", " ")


def _mixed(trace: Trace, labels: Tensor, dims: Iterable[int], what: str) -> bool:
    """Whether these axes are the channels; then they are pinned.

    Where channels lie along another axis as well (branches that were stacked, the channels of a head), what lies along
    these goes together.
    """
    dims = list(dims)
    if not any(trace.classes.varies(labels, dim) for dim in dims):
        return False
    if any(trace.classes.varies(labels, dim) for dim in range(labels.dim()) if dim not in dims):
        for dim in dims:
            labels = _united_along(trace, labels, dim).expand(labels.shape)
        return False
    trace.pin(labels, what)
    return True


def _reduced(trace: Trace, func: Any, args: Any, kwargs: Any, value: Any) -> Any:
    labels = trace.settled(labels_of(args[0]))
    dims = _dims(func, args, kwargs, labels.dim())
    out = value[0] if isinstance(value, tuple) else value
    if _mixed(trace, labels, dims, f"{_plain_name(func)} over channels"):
        return nothing(out.shape)
    kept = strip(labels)
    kept = kept.amax(dims, keepdim=True) if dims else kept
    if out.dim() < labels.dim():
        kept = kept.reshape([n for dim, n in enumerate(kept.shape) if dim not in dims])
    return kept.expand(out.shape)


def logsumexp(trace: Trace, func: Any, args: Any, kwargs: Any, value: Any) -> Any:
    """As the other reductions, but of zeros it makes the logarithm of their number."""
    return _reduced(trace, func, args, kwargs, value)


def along_one(trace: Trace, func: Any, args: Any, kwargs: Any, value: Any) -> Any:
    """Same shape (softmax, cumulative sums) or a selection along the axis (sort, topk), by the values there."""
    labels = trace.settled(labels_of(args[0]))
    place = 2 if func.overloadpacket is torch.ops.aten.topk else 1
    given = kwargs.get("dim", args[place] if len(args) > place else -1)
    dim = (given if isinstance(given, int) and not isinstance(given, bool) else -1) % max(labels.dim(), 1)
    out = value[0] if isinstance(value, tuple) else value
    if _mixed(trace, labels, [dim], f"{_plain_name(func)} over channels"):
        return nothing(out.shape)
    short = strip(labels)
    return _united_along(trace, short, dim).expand(out.shape)


def _places(trace: Trace, func: Any, args: Any, kwargs: Any, value: Any) -> None:
    """Where the largest is: numbers, which have no channels."""
    _reduced(trace, func, args, kwargs, value)


def _gated(trace: Trace, func: Any, args: Any, kwargs: Any, value: Tensor) -> Tensor:
    """One half of an axis times the sigmoid of the other: entry by entry they are one channel."""
    labels = strip(trace.settled(labels_of(args[0])))
    dim = (args[1] if len(args) > 1 else -1) % labels.dim()
    if labels.shape[dim] == 1:
        return labels.expand(value.shape)
    one, other = labels.chunk(2, dim)
    trace.classes.unite(one, other)
    return one.expand(value.shape)


def _embedding_bag(trace: Trace, func: Any, args: Any, kwargs: Any, value: Any) -> Tensor:
    """Rows of the first argument are summed."""
    return along(trace.classes.channels(trace.settled(labels_of(args[0])), 1), 1, value[0].shape)


def _index_add(trace: Trace, func: Any, args: Any, kwargs: Any, value: Tensor) -> Tensor:
    """Rows of the source are added to rows of the target, or put there."""
    target, source, dim = labels_of(args[0]), labels_of(args[3]), args[1] % value.dim()
    there = _united_along(trace, trace.settled(target), dim)
    added = _united_along(trace, trace.settled(source), dim)
    shape = common_shape(there, added)
    trace.classes.unite(there.expand(shape), added.expand(shape))
    return torch.where(there == NOTHING, added, there).expand(value.shape)


RULES: dict[Any, Rule] = {
    **dict.fromkeys(
        aten(
            "max_pool2d_with_indices max_pool3d_with_indices max_pool1d max_pool2d avg_pool1d avg_pool2d avg_pool3d "
            "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d "
            "upsample_bilinear2d _upsample_bilinear2d_aa upsample_nearest1d upsample_nearest2d upsample_nearest3d "
            "_upsample_nearest_exact2d upsample_bicubic2d upsample_trilinear3d upsample_linear1d grid_sampler_2d "
            "grid_sampler_3d"
        ),
        _over_space,
    ),
    **dict.fromkeys(
        aten("mean sum amax amin max min median prod var std var_mean linalg_vector_norm norm any all"),
        _reduced,
    ),
    **dict.fromkeys(aten("logsumexp"), logsumexp),
    **dict.fromkeys(
        aten("_softmax softmax _log_softmax log_softmax cumsum cumprod topk sort cummax cummin logcumsumexp"),
        along_one,
    ),
    **dict.fromkeys(aten("argmax argmin"), _places),
    **dict.fromkeys(aten("glu"), _gated),
    **dict.fromkeys(aten("_embedding_bag _embedding_bag_forward_only"), _embedding_bag),
    **dict.fromkeys(aten("index_add index_add_ scatter_add scatter_add_ index_copy index_copy_"), _index_add),
}
