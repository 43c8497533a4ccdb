"""Modules that are looked at from outside: their own forward runs as it is, and a rule says what it did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fastalter.fusion.weights import is_sparse_conv
from fastalter.profiling.sparse import sparse_flops
from fastalter.structure.compaction.layers import CountedLayerNorm
from fastalter.structure.grouping.labels import along
from fastalter.structure.grouping.rules.family import labels_of
from fastalter.structure.grouping.rules.functions import channel_norm
from fastalter.structure.grouping.trace import Exit, Trace, plain


def seen_from_outside(trace: Trace) -> dict[str, Callable[..., Any]]:
    """Path -> a forward to put in place of the module's own, for every module that has a rule here."""
    forwards: dict[str, Callable[..., Any]] = {}
    for path, module in trace.model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            forwards[path] = _multihead(trace, path, module)
        elif is_sparse_conv(module):
            forwards[path] = _sparse(trace, path, module)
        elif isinstance(module, CountedLayerNorm):
            forwards[path] = _counted(trace, path, module)
    return forwards


def _sparse(trace: Trace, path: str, module: Any) -> Callable[..., Any]:
    """A sparse convolution [out, k, ..., in] reads and makes the features of sites."""
    forward, name = module.forward, f"{path}.weight"

    def run(x: Any, *args: Any, **kwargs: Any) -> Any:
        source = plain(x)
        with trace.off():
            out = forward(source, *args, **kwargs)
        if module.groups != 1:
            trace.pin(trace.settled(labels_of(x.features)), "a sparse convolution in groups")
            return out
        weight = module.weight
        trace.read_by(path, name, weight.dim() - 1, trace.classes.channels(labels_of(x.features), 1))
        trace.add_flops(name, sparse_flops(module, source, out) / weight.numel())
        made = trace.made_by(path, name, None if module.bias is None else f"{path}.bias")
        return out.replace_feature(trace.labelled(out.features, along(made, 1, out.features.shape)))

    return run


def _counted(trace: Trace, path: str, module: CountedLayerNorm) -> Callable[..., Any]:
    """The norm of a network that was compacted before: more of its channels can leave."""
    forward = module.forward

    def run(x: Tensor) -> Tensor:
        with trace.off():
            value = forward(plain(x))
        return channel_norm(trace, path, x, value, module.weight, module.bias)

    return run


def _multihead(trace: Trace, path: str, module: nn.MultiheadAttention) -> Callable[..., Any]:
    """Attention [..., channels]: query, key and value share their width; heads go as a whole."""
    forward = module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        named = (given["query"], given.get("key", given.get("memory")), given.get("value"))
        inputs = [tensor for tensor in named if isinstance(tensor, Tensor)]
        with trace.off():
            out = forward(*plain(args), **plain(kwargs))
        attended = out[0] if isinstance(out, tuple) else out
        labelled = _label_attention(trace, path, module, inputs, attended)
        return (labelled, *out[1:]) if isinstance(out, tuple) else labelled

    return run


def _label_attention(
    trace: Trace, path: str, module: nn.MultiheadAttention, inputs: list[Tensor], attended: Tensor
) -> Tensor:
    name = f"{path}.in_proj_weight"
    if module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn:
        for tensor in inputs:
            trace.pin(trace.settled(labels_of(tensor)), "attention with key and value of other widths, or added ones")
        return attended
    for tensor in inputs:
        trace.read_by(path, name, 1, trace.classes.channels(labels_of(tensor), tensor.dim() - 1))
    projection = f"{path}.out_proj"
    heads, columns = module.num_heads, trace.axis(f"{projection}.weight", 1)
    table = trace.axis(name, 0).view(3, heads, -1).transpose(0, 1).reshape(heads, -1)
    own = columns.view(heads, -1)
    first = own.amax(1, keepdim=True)
    trace.classes.unite(first.expand_as(table), table)
    trace.classes.unite(first.expand_as(own), own)
    if module.in_proj_bias is not None:
        trace.classes.unite(trace.axis(name, 0), trace.axis(f"{path}.in_proj_bias", 0))
    trace.exits.setdefault(name, Exit(path, f"{projection}.weight", None, 1, columns, heads=True))
    trace.count(module, "num_heads", first.flatten())
    _count_flops(trace, name, projection, module, inputs, first.flatten())
    bias = None if module.out_proj.bias is None else f"{projection}.bias"
    made = trace.made_by(projection, f"{projection}.weight", bias)
    return trace.labelled(attended, along(made, attended.dim() - 1, attended.shape))


def _count_flops(
    trace: Trace, name: str, projection: str, module: nn.MultiheadAttention, inputs: list[Tensor], heads: Tensor
) -> None:
    channels = inputs[0].shape[-1]
    query, key = inputs[0].numel() / channels, inputs[min(1, len(inputs) - 1)].numel() / channels
    trace.add_flops(name, 2.0 * (query + 2 * key) / 3)
    trace.add_flops(f"{projection}.weight", 2.0 * query)
    samples = inputs[0].shape[0 if module.batch_first else 1] if inputs[0].dim() == 3 else 1
    trace.class_flops.append((heads, 2 * 2.0 * query * (key / samples) * module.head_dim))
