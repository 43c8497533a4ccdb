"""The numbers that layers of torch and spconv keep of their own shapes: what they are once their tensors are cut."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from fastalter.fusion.weights import is_sparse_conv

Value = int | tuple[int, ...]
Shapes = Mapping[str, tuple[int, ...]]
"""A module's own tensors (by their last names) -> their shapes."""


def widths_of(module: nn.Module, shapes: Shapes, counts: Mapping[str, int]) -> dict[str, Value]:
    """Attribute -> value that goes with tensors of these shapes; empty for a module of another kind.

    counts  attributes that are set from elsewhere: `groups` of a grouped convolution enters here
    """
    weight = shapes.get("weight", shapes.get("running_mean"))
    if isinstance(module, nn.MultiheadAttention):
        return _attention(shapes)
    if weight is None:
        return {}
    if isinstance(module, _ConvNd):
        first, second = weight[0], weight[1] * counts.get("groups", module.groups)
        out, into = (second, first) if module.transposed else (first, second)
        return {"in_channels": into, "out_channels": out}
    if is_sparse_conv(module):  # weights [out, kernel..., in]
        return {"in_channels": weight[-1], "out_channels": weight[0], "weight_shape": weight}
    if isinstance(module, nn.Linear):
        return {"in_features": weight[1], "out_features": weight[0]}
    return _norm_or_table(module, weight)


def _norm_or_table(module: nn.Module, weight: tuple[int, ...]) -> dict[str, Value]:
    if isinstance(module, _NormBase):
        return {"num_features": weight[0]}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": weight[0]}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {"normalized_shape": weight}
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return {"embedding_dim": weight[1]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": weight[0]}
    return {}


def _attention(shapes: Shapes) -> dict[str, Value]:
    stream = shapes["in_proj_weight" if "in_proj_weight" in shapes else "q_proj_weight"][1]
    key, value = (shapes[name][1] if name in shapes else stream for name in ("k_proj_weight", "v_proj_weight"))
    return {"embed_dim": stream, "kdim": key, "vdim": value}
