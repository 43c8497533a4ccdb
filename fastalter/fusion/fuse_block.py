"""The fuser's convolution, batch norm and ReLU for every modality mask at once (docs/method.md, saving 3).

The two products of the convolution and five sums per channel give all three mask states: the statistics that batch
norm takes over the sum of the products, or over one of them, need no pass of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastalter import ops
from fastalter.fusion.weights import is_plain_conv2d


@dataclass(frozen=True)
class FuseBlock:
    """Convolution, batch norm and, where it follows, ReLU: neighbours in an nn.Sequential.

    paths  of the modules, in this order; the convolution's first
    """

    paths: tuple[str, ...]
    conv: nn.Conv2d
    norm: nn.BatchNorm2d

    @property
    def relu(self) -> bool:
        """Whether a ReLU ends the block."""
        return len(self.paths) == 3

    def fits(self, x: Tensor) -> bool:
        """Whether the ops may stand in for the modules on this input: of the weight's dtype, without autocast."""
        return x.dim() == 4 and x.dtype == self.conv.weight.dtype and not torch.is_autocast_enabled(x.device.type)

    def every_state(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the block makes of both features [B, C, H, W], of the first alone and of the second alone.

        Batch norm's running statistics stay where they are.
        """
        conv = self.conv
        p_first, p_second, (sum1, square1), (sum2, square2), cross = self._products(first, second, conv.weight)
        moments = ((sum1 + sum2, square1 + square2 + 2 * cross), (sum1, square1), (sum2, square2))
        count = p_first.numel() // p_first.shape[1]
        rows = [batch_norm_row(self.norm, total, square, count, conv.bias) for total, square in moments]
        scale, shift = zip(*rows, strict=True)
        return ops.masked_fuse_norm(p_first, p_second, scale, shift, self.relu)

    def one_state(self, feature: Tensor, channels: slice) -> Tensor:
        """What it makes of one feature alone, which enters at these channels; bitwise as `every_state` has it."""
        product, _, (total, square), _, _ = self._products(feature, None, self.conv.weight[:, channels])
        count = product.numel() // product.shape[1]
        scale, shift = batch_norm_row(self.norm, total, square, count, self.conv.bias)
        return ops.masked_fuse_norm(product, None, [scale] * 3, [shift] * 3, self.relu)[1]

    def _products(self, first: Tensor, second: Tensor | None, weight: Tensor) -> tuple[Tensor, ...]:
        conv = self.conv
        return ops.masked_fuse(first, second, weight, conv.stride, conv.padding, conv.dilation)  # type: ignore[arg-type]


def block_at(model: nn.Module, path: str) -> FuseBlock | None:
    """The block that begins with the convolution at `path`; None where none does that the ops could stand in for."""
    parent_path, _, name = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    if not isinstance(parent, nn.Sequential):
        return None
    names = list(parent._modules)
    following = names[names.index(name) :][:3]
    conv, norm, relu = ([parent._modules[n] for n in following] + [None, None])[:3]
    if not is_plain_conv2d(conv) or type(norm) is not nn.BatchNorm2d or _hooked(conv) or _hooked(norm):
        return None
    length = 3 if type(relu) is nn.ReLU and not _hooked(relu) else 2
    return FuseBlock(tuple(f"{parent_path}.{n}" if parent_path else n for n in following[:length]), conv, norm)


def _hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def batch_norm_row(
    norm: nn.BatchNorm2d, total: Tensor, square: Tensor, count: int, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Batch norm of one mask state as scale*P + shift: two float64 [O], differentiable.

    Args: total, square: float64 [O], sum P and sum P^2 over `count` places; not read in eval mode, where the running
    statistics serve. bias [O]: what the convolution adds to P; batch statistics cancel it, running ones include it.
    """
    weight = 1.0 if norm.weight is None else norm.weight.double()
    beta = 0.0 if norm.bias is None else norm.bias.double()
    if norm.training or norm.running_mean is None or norm.running_var is None:
        mean = total / count
        variance = (square / count - mean * mean).clamp(min=0)  # rounding may take it below zero
    else:
        mean = norm.running_mean.double() - (0.0 if bias is None else bias.double())
        variance = norm.running_var.double()
    scale = weight * (variance + norm.eps).rsqrt()
    return scale, beta - mean * scale


class BrokenBlock(Exception):
    """The modules of a block are not run one after the other, each on what the one before returned."""


class Relay:
    """Stands in for the modules behind the convolution, which has done their work: passes its output through.

    Raises BrokenBlock where something else comes in, so that a network that is wired otherwise is noticed.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._calls = 0
        self._output: Tensor | None = None

    def start(self, output: Tensor) -> Tensor:
        """The convolution returns this."""
        self._output = output
        self._calls += 1
        return output

    def pass_on(self, x: Tensor) -> Tensor:
        """A module behind it."""
        if x is not self._output:
            raise BrokenBlock
        self._calls += 1
        return x

    def check(self) -> None:
        """After the pass: every module was called once."""
        if self._calls != self._length:
            raise BrokenBlock
