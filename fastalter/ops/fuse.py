"""Convolution over two concatenated features for all modality masks at once: schemas, fakes, wrappers.

Mask states, everywhere in this order: both features, the first only, the second only. What is per channel is float64.
Where the second feature is None (that branch is masked and its product is not wanted), only the state "first" is there;
the results that belong to the second feature are empty, [0].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastalter.errors import ScoringError
from fastalter.ops import backends
from fastalter.ops.checks import check_same
from fastalter.ops.masked import conv_size

STATES = ("both", "first", "second")
_PRODUCTS = "Tensor p_first, Tensor p_second"
_GIVEN = "Tensor p_first, Tensor? p_second"
_SUMS = "Tensor sums_first, Tensor sums_second, Tensor sums_cross"
_NORM = f"{_GIVEN}, Tensor[] scale, Tensor[] shift, bool relu"
SCHEMAS = {
    "masked_fuse": "(Tensor first, Tensor? second, Tensor weight, int[2] stride, int[2] padding, int[2] dilation) -> "
    f"({_PRODUCTS}, {_SUMS})",
    "masked_fuse_sums": f"({_GIVEN}) -> ({_SUMS})",
    "masked_fuse_grad": "(Tensor? grad, Tensor? grad_sums, Tensor? grad_cross, Tensor p, Tensor? other) -> Tensor",
    "masked_fuse_norm": f"({_NORM}) -> (Tensor both, Tensor first, Tensor second)",
    "masked_fuse_norm_backward": "(Tensor? grad_both, Tensor? grad_first, Tensor? grad_second, "
    f"{_NORM}) -> (Tensor dp_first, Tensor dp_second, Tensor dscale, Tensor dshift)",
}


# ---- fake implementations -------------------------------------------------------------------------------------------


def fake_masked_fuse(
    first: Tensor,
    second: Tensor | None,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, ...]:
    size = conv_size(first.shape[2:], weight.shape[2:], stride, padding, dilation)
    p_first = first.new_empty(first.shape[0], weight.shape[0], *size)
    p_second = None if second is None else torch.empty_like(p_first)
    sums = fake_masked_fuse_sums(p_first, p_second)
    return p_first, first.new_empty(0) if p_second is None else p_second, *sums


def fake_masked_fuse_sums(p_first: Tensor, p_second: Tensor | None) -> tuple[Tensor, ...]:
    of_one, of_both = (2, p_first.shape[1]), (p_first.shape[1],)
    shapes: tuple[tuple[int, ...], ...] = (of_one, (0,), (0,)) if p_second is None else (of_one, of_one, of_both)
    return tuple(p_first.new_empty(shape, dtype=torch.float64) for shape in shapes)


def fake_masked_fuse_grad(
    grad: Tensor | None, grad_sums: Tensor | None, grad_cross: Tensor | None, p: Tensor, other: Tensor | None
) -> Tensor:
    return torch.empty_like(p)


def fake_masked_fuse_norm(
    p_first: Tensor, p_second: Tensor | None, scale: Sequence[Tensor], shift: Sequence[Tensor], relu: bool
) -> tuple[Tensor, ...]:
    there = [p_second is not None or state == "first" for state in STATES]
    return tuple(torch.empty_like(p_first) if use else p_first.new_empty(0) for use in there)


def fake_masked_fuse_norm_backward(
    grad_both: Tensor | None,
    grad_first: Tensor | None,
    grad_second: Tensor | None,
    p_first: Tensor,
    p_second: Tensor | None,
    scale: Sequence[Tensor],
    shift: Sequence[Tensor],
    relu: bool,
) -> tuple[Tensor, ...]:
    given = (grad_both is not None or grad is not None for grad in (grad_first, grad_second))
    used = (p is not None and use for p, use in zip((p_first, p_second), given, strict=True))
    products = (torch.empty_like(p_first) if use else p_first.new_empty(0) for use in used)
    tables = (p_first.new_empty(3, p_first.shape[1], dtype=torch.float64) for _ in range(2))
    return (*products, *tables)


# ---- autograd: gradients that nobody asked for stay None, so that a masked branch costs its products nothing --------


def setup_masked_fuse(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    first, second, weight, *ctx.geometry = inputs
    ctx.save_for_backward(first, second, weight, *output[:2])
    ctx.set_materialize_grads(False)


def backward_masked_fuse(
    ctx: Any,
    grad_first: Tensor | None,
    grad_second: Tensor | None,
    grad_sums_first: Tensor | None,
    grad_sums_second: Tensor | None,
    grad_cross: Tensor | None,
) -> tuple[Tensor | None, ...]:
    first, second, weight, p_first, p_second = ctx.saved_tensors
    needs, width = ctx.needs_input_grad, first.shape[1]
    if second is None:
        grad_cross = p_second = None
    inputs: list[Tensor | None] = []
    grad_weight = torch.zeros_like(weight) if needs[2] else None
    for feature, channels, need, grads, p, other in (
        (first, slice(0, width), needs[0], (grad_first, grad_sums_first), p_first, p_second),
        (second, slice(width, None), needs[1], (grad_second, grad_sums_second), p_second, p_first),
    ):
        if feature is None or (grads == (None, None) and grad_cross is None):
            inputs.append(None)
            continue
        of_p = torch.ops.fastalter.masked_fuse_grad(*grads, grad_cross, p, other)
        inputs.append(_dgrad(of_p, weight[:, channels], feature, ctx.geometry) if need else None)
        if grad_weight is not None:
            grad_weight[:, channels] = _wgrad(of_p, feature, weight, ctx.geometry)
    return *inputs, grad_weight, None, None, None


def _dgrad(grad: Tensor, weight: Tensor, feature: Tensor, geometry: Sequence[Sequence[int]]) -> Tensor:
    product = torch.ops.fastalter.masked_conv2d_dgrad
    found: Tensor = product(grad, weight, None, 0, feature.shape[2:], *geometry)
    return found


def _wgrad(grad: Tensor, feature: Tensor, weight: Tensor, geometry: Sequence[Sequence[int]]) -> Tensor:
    product = torch.ops.fastalter.masked_conv2d_wgrad
    found: Tensor = product(grad, feature, None, 0, weight.shape[2:], *geometry)
    return found


def setup_masked_fuse_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    p_first, p_second, scale, shift, ctx.relu = inputs
    ctx.save_for_backward(p_first, p_second, *scale, *shift)
    ctx.set_materialize_grads(False)


def backward_masked_fuse_norm(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    p_first, p_second, *tables = ctx.saved_tensors
    there = [p_second is not None or state == "first" for state in STATES]
    grads = tuple(grad if use else None for grad, use in zip(grads, there, strict=True))
    given = [grad if grad is None else grad.contiguous() for grad in grads]
    backward = torch.ops.fastalter.masked_fuse_norm_backward
    dp_first, dp_second, dscale, dshift = backward(*given, p_first, p_second, tables[:3], tables[3:], ctx.relu)
    products = [dp if dp.shape == p_first.shape else None for dp in (dp_first, dp_second)]
    rows = [[None if grad is None else row for grad, row in zip(grads, d, strict=True)] for d in (dscale, dshift)]
    return *products, *rows, None


AUTOGRAD = {
    "masked_fuse": (backward_masked_fuse, setup_masked_fuse),
    "masked_fuse_norm": (backward_masked_fuse_norm, setup_masked_fuse_norm),
}


# ---- typed wrappers -------------------------------------------------------------------------------------------------


def masked_fuse(
    first: Tensor,
    second: Tensor | None,
    weight: Tensor,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """conv2d(cat(first, second), weight) taken apart, with the sums that batch norm needs in every mask state.

    Args: first [B, C1, H, W], second [B, C2, H, W] or None, weight [O, C1 + C2, kh, kw], of one floating dtype.
    Returns: P_first, P_second [B, O, H', W'], the convolutions of each feature alone; float64 sums_first and
    sums_second [2, O], sum P and sum P^2 over batch and places; sums_cross [O], sum P_first*P_second. All of it is
    differentiable.
    Raises: ScoringError if shapes, dtypes or devices do not fit.
    """
    check_same("masked_fuse", {"first": first, "second": second, "weight": weight}, ScoringError)
    other = first[:, :0] if second is None else second
    fits = first.dim() == other.dim() == weight.dim() == 4 and first.shape[1] + other.shape[1] == weight.shape[1]
    if not fits or first.shape[0] != other.shape[0] or first.shape[2:] != other.shape[2:]:
        shapes = f"first {tuple(first.shape)}, second {tuple(other.shape)} and weight {tuple(weight.shape)}"
        raise ScoringError(f"masked_fuse: {shapes} do not fit: pass [B, C1, H, W], [B, C2, H, W], [O, C1 + C2, kh, kw]")
    run = backends.implementation("masked_fuse", first.device)
    p_first, p_second, *sums = run(first, second, weight, list(stride), list(padding), list(dilation))
    return p_first, p_second, sums[0], sums[1], sums[2]


def masked_fuse_norm(
    p_first: Tensor, p_second: Tensor | None, scale: Sequence[Tensor], shift: Sequence[Tensor], relu: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """scale_v*P_v + shift_v and its ReLU for the three mask states, the products read once.

    Args: p_first, p_second [B, O, H, W] as `masked_fuse` returns them; scale, shift: three float64 [O], one per state.
    Returns: both, first only, second only, each [B, O, H, W]. Differentiable; a state without a gradient costs nothing.
    Raises: ScoringError if shapes, dtypes or devices do not fit.
    """
    check_same("masked_fuse_norm", {"p_first": p_first, "p_second": p_second}, ScoringError)
    if p_first.dim() != 4 or (p_second is not None and p_first.shape != p_second.shape):
        shapes = f"{tuple(p_first.shape)} and {None if p_second is None else tuple(p_second.shape)}"
        raise ScoringError(f"masked_fuse_norm: the products are {shapes}, but must both be [B, O, H, W]")
    rows = [_rows("scale", scale, p_first), _rows("shift", shift, p_first)]
    run = backends.implementation("masked_fuse_norm", p_first.device)
    second_there = None if p_second is None else p_second.contiguous()
    both, first, second = run(p_first.contiguous(), second_there, *rows, relu)
    return both, first, second


def _rows(name: str, table: Sequence[Tensor], products: Tensor) -> list[Tensor]:
    """The three rows, contiguous; each keeps a graph of its own, so that a state without a gradient stays without."""
    rows, channels = list(table), products.shape[1]
    for row in rows:
        if row.shape != (channels,) or row.dtype != torch.float64 or row.device != products.device:
            found, wanted = f"{tuple(row.shape)} {row.dtype} on {row.device}", f"({channels},) torch.float64"
            raise ScoringError(
                f"masked_fuse_norm: a row of {name} is {found}, but must be {wanted} beside the products"
            )
    if len(rows) != len(STATES):
        raise ScoringError(f"masked_fuse_norm: {name} has {len(rows)} rows, but there are 3 mask states")
    return [row.contiguous() for row in rows]
