"""Batch norms folded into the layers before them: what deployers do with a trained network next.

In eval mode a batch norm is y = s * x + t per channel, s = gamma / sqrt(variance + eps) and t = beta - s * mean.
Behind a convolution or a linear layer it is the same layer with weights s * W and bias s * b + t (Jacob et al., CVPR
2018, section 3.2). Which norms stand directly behind such a layer is watched in a forward pass, see `watch.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from fastalter.errors import ModelError
from fastalter.fusion.weights import is_sparse_conv
from fastalter.structure.compaction.layers import add_bias_on_cpu

if TYPE_CHECKING:
    from fastalter.structure.compaction.plan import CompactionPlan


@dataclass(frozen=True)
class Folded:
    """What `fold_norms` did.

    plan  with the folds in it: it rebuilds the folded network
    left  batch norm's path -> why it stays
    """

    plan: CompactionPlan
    left: dict[str, str]


def fold_norms(model: nn.Module, forward: Callable[[nn.Module], object], plan: CompactionPlan | None = None) -> Folded:
    """Fold every batch norm that stands directly behind a convolution or linear layer into it, in place.

    The network computes in eval mode what it did, and in train mode the same: it has no batch statistics any more.

    Args:
        forward: forward(model) runs the model on an example, all of it that is used at inference.
        plan: the one that made the model of the original; None where it is the original.

    What `forward` raises is passed on; the model is then as it was.
    """
    from fastalter.structure.compaction.plan import CompactionPlan
    from fastalter.structure.compaction.watch import find_folds

    found = find_folds(model, forward)
    for layer, norm in found.pairs:
        fold_pair(model, layer, norm)
    before = plan or CompactionPlan({})
    return Folded(replace(before, folds=[*before.folds, *found.pairs]), found.left)


def check_pair(modules: Mapping[str, nn.Module], layer: str, norm: str) -> None:
    """Raises ModelError unless the module at `norm` can be folded into the one at `layer`. Changes nothing."""
    before, behind = modules.get(layer), modules.get(norm)
    if before is None or not takes_norm(before):
        found = "nothing" if before is None else type(before).__name__
        raise ModelError(f"the plan folds a norm into {layer!r}, which is {found}: no convolution or linear layer")
    if not isinstance(behind, _BatchNorm) or not norm or behind.running_mean is None or behind.running_var is None:
        found = "nothing" if behind is None else type(behind).__name__
        raise ModelError(f"the plan folds {norm!r}, which is {found}: no batch norm with running statistics")
    if out_channels(before) != behind.num_features:
        widths = f"{out_channels(before)} channels, the norm {norm} {behind.num_features}"
        raise ModelError(f"the plan folds a norm into {layer}, which has {widths}: these do not belong together")


@torch.no_grad()
def fold_pair(model: nn.Module, layer: str, norm: str) -> None:
    """Scale the layer's weights, give it a bias, and put an Identity where the norm was; in place.

    Computed in float64. A layer without a bias gets one. Both modules must fit, see `check_pair`.
    """
    target: Any = model.get_submodule(layer)
    batch_norm = model.get_submodule(norm)
    assert isinstance(batch_norm, _BatchNorm)
    scale, shift = scale_and_shift(batch_norm)
    weight = target.weight
    weight.copy_(weight.double() * _along_output(target, scale))
    bias = shift if target.bias is None else shift + scale * target.bias.double()
    target.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=weight.requires_grad)
    if is_sparse_conv(target):
        add_bias_on_cpu(target)
    identity = nn.Identity().train(batch_norm.training)
    for module in model.modules():
        for name, child in module._modules.items():
            if child is batch_norm:
                module._modules[name] = identity


def scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """(s, t) float64 [C] of y = s * x + t, what the norm computes in eval mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -scale * norm.running_mean.double()
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def takes_norm(module: nn.Module) -> bool:
    """Convolutions (transposed and sparse too) and linear layers."""
    return isinstance(module, _ConvNd | nn.Linear) or is_sparse_conv(module)


def out_channels(module: nn.Module) -> int:
    """Channels that a layer of `takes_norm` gives."""
    return int(getattr(module, "out_features" if isinstance(module, nn.Linear) else "out_channels"))


def _along_output(layer: nn.Module, scale: Tensor) -> Tensor:
    """The scale [C], to multiply the layer's weight with: along its output channels."""
    if isinstance(layer, _ConvNd) and layer.transposed:  # [in, out / groups, ...]: the input channels in group order
        per_group = scale.view(layer.groups, 1, -1).expand(-1, layer.in_channels // layer.groups, -1)
        scale = per_group.reshape(layer.in_channels, -1)
        return scale.view(*scale.shape, *[1] * len(layer.kernel_size))
    weight: Any = layer.weight
    return scale.view(-1, *[1] * (weight.dim() - 1))
