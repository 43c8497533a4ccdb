"""Convolution over two concatenated features, for all modality masks at once: products, norm statistics, norm + ReLU.

conv(cat(first, second)) is P_first + P_second. The three mask states (both, first only, second only) are P_first +
P_second, P_first and P_second; batch norm needs their sums and sums of squares, which follow from five sums a channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastalter.ops.reference.masked import masked_conv2d


def masked_fuse(
    first: Tensor,
    second: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(P_first, P_second, sums_first [2, O], sums_second [2, O], sums_cross [O]); see `masked_fuse_sums`."""
    width = first.shape[1]
    p_first = masked_conv2d(first, weight[:, :width], None, 0, None, stride, padding, dilation)
    p_second = masked_conv2d(second, weight[:, width:], None, 0, None, stride, padding, dilation)
    return p_first, p_second, *masked_fuse_sums(p_first, p_second)


def masked_fuse_sums(p_first: Tensor, p_second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """float64: [sum P, sum P^2] of each product [2, O], and sum P_first*P_second [O], over batch and places."""
    a, b = p_first.double(), p_second.double()
    every = [0, *range(2, a.dim())]
    of = [torch.stack([p.sum(every), (p * p).sum(every)]) for p in (a, b)]
    return of[0], of[1], (a * b).sum(every)


def masked_fuse_grad(
    grad: Tensor | None, grad_sums: Tensor | None, grad_cross: Tensor | None, p: Tensor, other: Tensor
) -> Tensor:
    """dL/dP of one product in full: grad + grad_sums[0] + 2 P grad_sums[1] + P_other grad_cross; None counts as 0."""
    wide, other = (p, other) if p.dtype == torch.float64 else (p.float(), other.float())
    total = torch.zeros_like(wide) if grad is None else grad.to(wide.dtype)
    if grad_sums is not None:
        total = total + _of_channel(grad_sums[0], wide) + wide * _of_channel(2 * grad_sums[1], wide)
    if grad_cross is not None:
        total = total + other * _of_channel(grad_cross, wide)
    return total.to(p.dtype)


def masked_fuse_norm(
    p_first: Tensor, p_second: Tensor, scale: Sequence[Tensor], shift: Sequence[Tensor], relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """scale_v*P_v + shift_v and, if asked for, its ReLU, for the states both, first only, second only."""
    a, b = (p if p.dtype == torch.float64 else p.float() for p in (p_first, p_second))
    outputs = [_of_channel(scale[v], a) * p + _of_channel(shift[v], a) for v, p in enumerate((a + b, a, b))]
    both, only_first, only_second = ((y.relu() if relu else y).to(p_first.dtype) for y in outputs)
    return both, only_first, only_second


def masked_fuse_norm_backward(
    grad_both: Tensor | None,
    grad_first: Tensor | None,
    grad_second: Tensor | None,
    p_first: Tensor,
    p_second: Tensor,
    scale: Sequence[Tensor],
    shift: Sequence[Tensor],
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dP_first, dP_second, dscale [3, O], dshift [3, O]); a state without gradient counts as 0.

    A product that no given state uses gets an empty gradient [0].
    """
    a, b = (p if p.dtype == torch.float64 else p.float() for p in (p_first, p_second))
    every = [0, *range(2, a.dim())]
    of_first, of_second = torch.zeros_like(a), torch.zeros_like(b)
    dscale, dshift = (a.new_zeros(3, a.shape[1], dtype=torch.float64) for _ in range(2))
    for v, (grad, p) in enumerate(((grad_both, a + b), (grad_first, a), (grad_second, b))):
        if grad is None:
            continue
        g = grad.to(a.dtype)
        if relu:
            g = torch.where(_of_channel(scale[v], a) * p + _of_channel(shift[v], a) > 0, g, 0.0)
        dscale[v] = (g.double() * p.double()).sum(every)
        dshift[v] = g.double().sum(every)
        if v != 2:
            of_first += _of_channel(scale[v], a) * g
        if v != 1:
            of_second += _of_channel(scale[v], a) * g
    nothing = p_first.new_empty(0)
    first = of_first.to(p_first.dtype) if grad_both is not None or grad_first is not None else nothing
    second = of_second.to(p_first.dtype) if grad_both is not None or grad_second is not None else nothing.clone()
    return first, second, dscale, dshift


def _of_channel(values: Tensor, like: Tensor) -> Tensor:
    """[O] float64 as [1, O, 1, 1] of the dtype that the arithmetic runs in."""
    return values.to(like.dtype).view(1, -1, *[1] * (like.dim() - 2))
