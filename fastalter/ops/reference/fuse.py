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
    second: Tensor | None,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(P_first, P_second, sums_first [2, O], sums_second [2, O], sums_cross [O]); see `masked_fuse_sums`."""
    width = first.shape[1]
    p_first = masked_conv2d(first, weight[:, :width], None, 0, None, stride, padding, dilation)
    if second is None:
        return p_first, p_first.new_empty(0), *masked_fuse_sums(p_first, None)
    p_second = masked_conv2d(second, weight[:, width:], None, 0, None, stride, padding, dilation)
    return p_first, p_second, *masked_fuse_sums(p_first, p_second)


def masked_fuse_sums(p_first: Tensor, p_second: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """float64: [sum P, sum P^2] of each product [2, O], and sum P_first*P_second [O], over batch and places."""
    a = p_first.double()
    every = [0, *range(2, a.dim())]
    sums_first = torch.stack([a.sum(every), (a * a).sum(every)])
    if p_second is None:
        return sums_first, sums_first.new_empty(0), sums_first.new_empty(0)
    b = p_second.double()
    return sums_first, torch.stack([b.sum(every), (b * b).sum(every)]), (a * b).sum(every)


def masked_fuse_grad(
    grad: Tensor | None, grad_sums: Tensor | None, grad_cross: Tensor | None, p: Tensor, other: Tensor | None
) -> Tensor:
    """dL/dP of one product in full: grad + grad_sums[0] + 2 P grad_sums[1] + P_other grad_cross; None counts as 0."""
    wide = p if p.dtype == torch.float64 else p.float()
    total = torch.zeros_like(wide) if grad is None else grad.to(wide.dtype)
    if grad_sums is not None:
        total = total + _of_channel(grad_sums[0], wide) + wide * _of_channel(2 * grad_sums[1], wide)
    if grad_cross is not None and other is not None:
        total = total + other.to(wide.dtype) * _of_channel(grad_cross, wide)
    return total.to(p.dtype)


def masked_fuse_norm(
    p_first: Tensor, p_second: Tensor | None, scale: Sequence[Tensor], shift: Sequence[Tensor], relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """scale_v*P_v + shift_v and, if asked for, its ReLU, for the states both, first only, second only."""
    outputs = [p_first.new_empty(0) for _ in range(3)]
    for v, p in enumerate(_states(p_first, p_second)):
        if p is not None:
            y = _of_channel(scale[v], p) * p + _of_channel(shift[v], p)
            outputs[v] = (y.relu() if relu else y).to(p_first.dtype)
    return outputs[0], outputs[1], outputs[2]


def masked_fuse_norm_backward(
    grad_both: Tensor | None,
    grad_first: Tensor | None,
    grad_second: Tensor | None,
    p_first: Tensor,
    p_second: Tensor | None,
    scale: Sequence[Tensor],
    shift: Sequence[Tensor],
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dP_first, dP_second, dscale [3, O], dshift [3, O]); a state without gradient counts as 0.

    A product that no given state uses gets an empty gradient [0].
    """
    wide = torch.float64 if p_first.dtype == torch.float64 else torch.float32
    every = [0, *range(2, p_first.dim())]
    products: list[Tensor | None] = [None, None]
    dscale, dshift = (p_first.new_zeros(3, p_first.shape[1], dtype=torch.float64) for _ in range(2))
    for v, (grad, p) in enumerate(zip((grad_both, grad_first, grad_second), _states(p_first, p_second), strict=True)):
        if grad is None or p is None:
            continue
        g = grad.to(wide)
        if relu:
            g = torch.where(_of_channel(scale[v], p) * p + _of_channel(shift[v], p) > 0, g, 0.0)
        dscale[v] = (g.double() * p.double()).sum(every)
        dshift[v] = g.double().sum(every)
        of_p = _of_channel(scale[v], p) * g
        for which in ((0, 1), (0,), (1,))[v]:
            before = products[which]
            products[which] = of_p if before is None else before + of_p
    first, second = (p_first.new_empty(0) if dp is None else dp.to(p_first.dtype) for dp in products)
    return first, second.clone() if second is first else second, dscale, dshift


def _states(p_first: Tensor, p_second: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """P_v of the three mask states, in the dtype that the arithmetic runs in."""
    a, b = (p if p is None or p.dtype == torch.float64 else p.float() for p in (p_first, p_second))
    return None if a is None or b is None else a + b, a, b


def _of_channel(values: Tensor, like: Tensor) -> Tensor:
    """[O] float64 as [1, O, 1, 1] of the dtype that the arithmetic runs in."""
    return values.to(like.dtype).view(1, -1, *[1] * (like.dim() - 2))
