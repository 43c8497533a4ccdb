"""Moves: what happens to the elements happens to their labels.

Views, permutations, joining, cutting, indexing and padding run on the labels themselves; so a flattened height, a
shuffle of channels or the four pixels of a patch merge need no rule of their own. Where an axis of channels is divided,
into heads or parts, or read by number, the trace keeps a condition on which channels may leave (`conditions.py`).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from fastalter.fusion.tree import map_tensors
from fastalter.structure.grouping.conditions import Divided, Numbered, Size
from fastalter.structure.grouping.labels import NOTHING, rows_along, simplified, strip
from fastalter.structure.grouping.rules.family import Rule, as_labels, aten, labels_of
from fastalter.structure.grouping.rules.pointwise import meet
from fastalter.structure.grouping.trace import Labelled, Trace, plain

COUNTING = re.compile(r"head|dim|chan|width|plane|feat|embed|hidden|inner|group|bins|class", re.IGNORECASE)
"""Attributes by whose name a user's module counts channels or heads, which a reshape or a split then reads."""
OF_ONE_HEAD = re.compile(
    r"head_?(dim|size|width|chan)|(dim|size|width|channels)_?(per_?|of_?)?head|per_head", re.IGNORECASE
)
"""Those that count the channels of one head: heads go as a whole."""


def _moved(trace: Trace, func: Any, args: Any, kwargs: Any, value: Any) -> Any:
    return simplified(func(*as_labels(args), **as_labels(kwargs)))


def _reshaped(trace: Trace, func: Any, args: Any, kwargs: Any, value: Tensor) -> Tensor:
    """Labels may lie in memory in a way that a view cannot express: they are copied then."""
    before: Tensor = args[0].labels
    after = simplified(before.reshape(value.shape))
    for dims in divided_axes(before.shape, after.shape):
        if (table := _table(trace, after, dims)) is not None:
            trace.conditions.append(Divided(table, trace.here))
    _note_sizes(trace, after)
    return after


def divided_axes(before: torch.Size, after: torch.Size) -> list[list[int]]:
    """The groups of axes of the shape `after` that come from dividing an axis of `before`."""
    groups: list[list[int]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        of_before, of_after, dims = before[i], after[j], [j]
        while of_before != of_after:
            if of_before < of_after:
                i += 1
                of_before *= before[i]
            else:
                j += 1
                of_after *= after[j]
                dims.append(j)
        i, j = i + 1, j + 1
        if sum(after[dim] > 1 for dim in dims) > 1:
            groups.append(dims)
    return groups


def _table(trace: Trace, labels: Tensor, dims: list[int]) -> Tensor | None:
    """The labels of these axes alone; None where channels do not differ along them."""
    if not any(trace.classes.varies(labels, dim) for dim in dims):
        return None
    short = strip(labels).abs()
    others = [dim for dim in range(short.dim()) if dim not in dims]
    return short.amax(others) if others else short


def _note_sizes(trace: Trace, labels: Tensor) -> None:
    """A size that the running module keeps as an attribute, of an axis along which channels differ, has to follow."""
    for dim, size in enumerate(strip(labels).shape):
        for name in _attributes(trace, size):
            trace.conditions.append(Size(trace.stack[-1], name, rows_along(labels, dim).amax(1)))


def _attributes(trace: Trace, size: int) -> list[str]:
    """Attributes of the running module, one that torch does not define, that count and have this value."""
    module = trace.stack[-1] if trace.stack else None
    if module is None or size < 2 or type(module).__module__.startswith("torch.nn"):
        return []
    counting = {k: v for k, v in vars(module).items() if COUNTING.search(k) and not OF_ONE_HEAD.search(k)}
    return [k for k, v in counting.items() if type(v) is int and v == size]


def _split(trace: Trace, func: Any, args: Any, kwargs: Any, value: Any) -> list[Tensor]:
    """Parts of an axis: of one size, or of sizes that the module keeps as attributes, all or all but one."""
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % args[0].dim()
    parts = [simplified(part) for part in func(*as_labels(args), **as_labels(kwargs))]
    sizes = [part.shape[dim] for part in parts]
    rows = rows_along(args[0].labels, dim).amax(1)
    if len(rows) > 1 and len(sizes) > 1:
        if sum(not _attributes(trace, size) for size in sizes) <= 1:
            pass  # named sizes are noted below; one part may take what is left
        elif len(set(sizes)) == 1:
            trace.conditions.append(Divided(rows.view(len(sizes), -1), trace.here, inner=True))
        else:
            trace.conditions.append(Numbered(rows, "it is cut at a fixed place", trace.here))
    for part in parts:
        _note_sizes(trace, part)
    return parts


def _slice(trace: Trace, func: Any, args: Any, kwargs: Any, value: Tensor) -> Tensor:
    """A part of an axis: one of several of a size, or one that attributes name."""
    labels = simplified(func(*as_labels(args), **as_labels(kwargs)))
    dim = (args[1] if len(args) > 1 else 0) % args[0].dim()
    rows, size = rows_along(args[0].labels, dim).amax(1), labels.shape[dim]
    if len(rows) == 1 or size == len(rows):
        return labels
    start = args[2] or 0 if len(args) > 2 else 0
    start = start + len(rows) if start < 0 else start
    step = args[4] if len(args) > 4 else 1
    named = [edge for edge in {start, start + size} - {0, len(rows)} if _attributes(trace, edge)]
    if step == 1 and (_attributes(trace, size) or named):
        for edge in named:
            for name in _attributes(trace, edge):
                trace.conditions.append(Size(trace.stack[-1], name, rows[:edge]))
        _note_sizes(trace, labels)
    elif step == 1 and size > 1 and len(rows) % size == 0 and start % size == 0:
        trace.conditions.append(Divided(rows.view(-1, size), trace.here, inner=True))
    else:
        trace.conditions.append(Numbered(rows, "it is cut at a fixed place", trace.here))
    return labels


def _numbered(trace: Trace, func: Any, args: Any, kwargs: Any, value: Any) -> Any:
    """Positions of an axis are read by number: channels along it would change theirs."""
    where = [plain(arg) for arg in args[1:]]  # an index may have labels itself, of the data it was made from
    found = func(labels_of(args[0]), *map_tensors(where, Tensor.cpu), **kwargs)
    for dim in _read_axes(func, args):
        rows = rows_along(args[0].labels, dim).amax(1)
        if len(rows) > 1:
            trace.conditions.append(Numbered(rows, "its channels are read by number", trace.here))
    return [simplified(x) for x in found] if isinstance(found, (list, tuple)) else simplified(found)


def _read_axes(func: Any, args: Any) -> list[int]:
    if not isinstance(args[0], Labelled):
        return []
    if func.overloadpacket is torch.ops.aten.index:
        axes = []
        place = 0
        for index in args[1]:
            axes += [place] if index is not None else []
            place += index.dim() if index is not None and index.dtype == torch.bool else 1
        return axes
    return [(args[1] if len(args) > 1 else 0) % args[0].dim()]


def _pixel_shuffled(trace: Trace, func: Any, args: Any, kwargs: Any, value: Tensor) -> Tensor:
    """The channels that one channel of the result is woven from go together."""
    factor, labels = args[1], args[0].labels
    rows = trace.classes.channels(labels, labels.dim() - 3).abs().view(-1, factor * factor)
    trace.classes.unite(rows.amax(1, keepdim=True).expand_as(rows), rows)
    return simplified(func(labels, factor))


def _channel_shuffled(trace: Trace, func: Any, args: Any, kwargs: Any, value: Tensor) -> Tensor:
    """The parts that are woven into each other keep one size."""
    rows = rows_along(args[0].labels, 1).amax(1).expand(value.shape[1])
    trace.conditions.append(Divided(rows.view(args[1], -1), trace.here, inner=True))
    return simplified(rows.view(args[1], -1).t().reshape(-1).view(-1, *[1] * (value.dim() - 2)).expand(value.shape))


def _joined(trace: Trace, func: Any, args: Any, kwargs: Any, value: Tensor) -> Tensor:
    return simplified(func([labels_of(tensor) for tensor in args[0]], *args[1:], **kwargs))


def _same(trace: Trace, func: Any, args: Any, kwargs: Any, value: Any) -> Tensor:
    return labels_of(args[0])


def _like(trace: Trace, func: Any, args: Any, kwargs: Any, value: Any) -> Tensor:
    """Made in the shape of an activation, so it shrinks with it."""
    return trace.settled(labels_of(args[0]))


def _rolled(trace: Trace, func: Any, args: Any, kwargs: Any, value: Tensor) -> Tensor:
    labels: Tensor = args[0].labels
    dims = args[2] if len(args) > 2 and args[2] else range(labels.dim())
    short = strip(labels)
    for dim in dims:
        if short.shape[dim] > 1:
            rows = rows_along(labels, dim).amax(1)
            trace.conditions.append(Numbered(rows, "its channels are rolled", trace.here))
    return simplified(func(labels, *args[1:], **kwargs)) if any(short.shape[d] > 1 for d in dims) else labels


def padded(trace: Trace, func: Any, args: Any, kwargs: Any, value: Tensor) -> Tensor:
    """What is padded along space is part of its channel; what is padded along channels belongs to none."""
    labels, pads = args[0].labels, list(args[1])
    short = strip(labels)
    last_first = zip(range(labels.dim() - 1, -1, -1), zip(pads[::2], pads[1::2], strict=True), strict=False)
    for dim, (before, after) in last_first:
        if short.shape[dim] > 1 and (before or after):
            short = torch.nn.functional.pad(short, [0, 0] * (labels.dim() - 1 - dim) + [before, after])
    return short.expand(value.shape)


CANVASES = set(aten("new_zeros new_empty new_full new_ones"))
"""What makes a tensor to write into."""

RULES: dict[Any, Rule] = {
    **dict.fromkeys(
        aten("permute transpose t expand squeeze unsqueeze flip unfold pixel_unshuffle movedim diagonal repeat im2col"),
        _moved,
    ),
    **dict.fromkeys(aten("view _unsafe_view reshape _reshape_alias"), _reshaped),
    **dict.fromkeys(aten("split split_with_sizes unsafe_split unsafe_split_with_sizes"), _split),
    **dict.fromkeys(aten("slice"), _slice),
    **dict.fromkeys(aten("index gather index_select select unbind take_along_dim"), _numbered),
    **dict.fromkeys(aten("pixel_shuffle"), _pixel_shuffled),
    **dict.fromkeys(aten("channel_shuffle native_channel_shuffle"), _channel_shuffled),
    **dict.fromkeys(aten("cat stack"), _joined),
    **dict.fromkeys(aten("clone alias detach contiguous _to_copy lift_fresh positive"), _same),
    **dict.fromkeys(aten("zeros_like ones_like empty_like full_like rand_like randn_like"), _like),
    **dict.fromkeys(aten("roll"), _rolled),
    **dict.fromkeys(
        aten(
            "constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
            "replication_pad3d"
        ),
        padded,
    ),
}


def _is_blank(target: Labelled) -> bool:
    """A canvas that nothing has been written to: its labels have memory of their own, and views share it."""
    return 0 not in target.labels.stride() and not bool((target.labels != NOTHING).any())


def _copy(trace: Trace, func: Any, args: Any, kwargs: Any) -> Any:
    target, source = args[0], args[1]
    if not isinstance(target, Labelled):
        trace.pin(trace.settled(source.labels), "it is written into a tensor that nothing is known of")
        return func(target, source.value)
    func(target.value, source.value if isinstance(source, Labelled) else source, *args[2:], **kwargs)
    if _is_blank(target):
        target.labels.copy_(trace.settled(labels_of(source)))
    elif isinstance(source, Labelled):
        target.labels = meet(trace, [target.labels, source.labels], target.shape, constants=True)
    target.lit |= source.lit if isinstance(source, Labelled) else not _is_blank(target)
    return target


def _index_put(trace: Trace, func: Any, args: Any, kwargs: Any) -> Any:
    target, indices, source = args[0], plain(args[1]), args[2]
    if not isinstance(target, Labelled):
        trace.pin(trace.settled(labels_of(source)), "it is written into a tensor that nothing is known of")
        return func(target, indices, source.value, *args[3:], **kwargs)
    func(target.value, indices, source.value if isinstance(source, Labelled) else source, *args[3:], **kwargs)
    if 0 in target.labels.stride():
        target.labels = target.labels.contiguous()
    places = tuple(slice(None) if index is None else index.cpu() for index in indices)
    there = target.labels[places]
    written = trace.settled(labels_of(source)).expand(there.shape)
    trace.classes.unite(there, written)
    target.labels[places] = torch.where(written == NOTHING, there, written)
    target.lit |= source.lit if isinstance(source, Labelled) else not _is_blank(target)
    return target


def _constant(trace: Trace, func: Any, args: Any, kwargs: Any) -> Any:
    """A number written into a channel leaves it the channel that it is."""
    target, *rest = args
    func(target.value if isinstance(target, Labelled) else target, *rest, **kwargs)
    if isinstance(target, Labelled) and rest and rest[0] != 0:
        target.lit = True
    return target


def _laid_out(trace: Trace, func: Any, args: Any, kwargs: Any) -> Any:
    """Pooling to one place lays its result out anew in memory; of another shape it is a view of nobody knows what."""
    target, size = args[0], args[1]
    value = func(target.value, *args[1:], **kwargs)
    if tuple(size) == tuple(target.shape):
        return trace.labelled(value, target.labels)
    trace.pin(trace.settled(target.labels), "it is read as memory, not as channels")
    return value


IN_PLACE: dict[Any, Any] = {
    torch.ops.aten.copy_.default: _copy,
    torch.ops.aten.index_put_.default: _index_put,
    torch.ops.aten._index_put_impl_.default: _index_put,
    torch.ops.aten.fill_.Scalar: _constant,
    torch.ops.aten.zero_.default: _constant,
    torch.ops.aten.as_strided_.default: _laid_out,
}
