"""Linear and convolution layers whose weight is masked as it is loaded: schemas, fakes, wrappers.

mu is a bit-packed mask (`make_mask`): element j (row-major) of the weight stays where bit offset + j is set. Autograd
goes through the wrappers: dgrad is the product for the input, wgrad the one for the weight, mu included.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastalter.errors import MaskError
from fastalter.ops import backends
from fastalter.ops.checks import check_bits, check_same

_MASK = "Tensor? mask, int offset"
_CONV = "int[2] stride, int[2] padding, int[2] dilation"
SCHEMAS = {
    "masked_linear": "(Tensor input, Tensor weight, Tensor mask, int offset, Tensor? bias) -> Tensor",
    "masked_linear_dgrad": "(Tensor grad, Tensor weight, Tensor mask, int offset) -> Tensor",
    "masked_linear_wgrad": "(Tensor grad, Tensor input, Tensor mask, int offset) -> Tensor",
    "masked_conv2d": f"(Tensor input, Tensor weight, {_MASK}, Tensor? bias, {_CONV}) -> Tensor",
    "masked_conv2d_dgrad": f"(Tensor grad, Tensor weight, {_MASK}, SymInt[2] size, {_CONV}) -> Tensor",
    "masked_conv2d_wgrad": f"(Tensor grad, Tensor input, {_MASK}, SymInt[2] kernel, {_CONV}) -> Tensor",
}


# ---- fake implementations -------------------------------------------------------------------------------------------


def fake_masked_linear(input: Tensor, weight: Tensor, mask: Tensor, offset: int, bias: Tensor | None = None) -> Tensor:
    return input.new_empty(*input.shape[:-1], weight.shape[0])


def fake_masked_linear_dgrad(grad: Tensor, weight: Tensor, mask: Tensor, offset: int) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], weight.shape[1])


def fake_masked_linear_wgrad(grad: Tensor, input: Tensor, mask: Tensor, offset: int) -> Tensor:
    return grad.new_empty(grad.shape[-1], input.shape[-1])


def fake_masked_conv2d(
    input: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    offset: int,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    height, width = conv_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    return input.new_empty(input.shape[0], weight.shape[0], height, width)


def fake_masked_conv2d_dgrad(
    grad: Tensor, weight: Tensor, mask: Tensor | None, offset: int, size: Sequence[int], *geometry: Sequence[int]
) -> Tensor:
    return grad.new_empty(grad.shape[0], weight.shape[1], *size)


def fake_masked_conv2d_wgrad(
    grad: Tensor, input: Tensor, mask: Tensor | None, offset: int, kernel: Sequence[int], *geometry: Sequence[int]
) -> Tensor:
    return grad.new_empty(grad.shape[1], input.shape[1], *kernel)


def conv_size(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int]:
    """Height and width of a convolution's output."""
    height, width = (
        (n + 2 * pad - dil * (k - 1) - 1) // step + 1
        for n, k, step, pad, dil in zip(size, kernel, stride, padding, dilation, strict=True)
    )
    return height, width


# ---- autograd -------------------------------------------------------------------------------------------------------


def setup_masked_linear(ctx: object, inputs: tuple[object, ...], output: Tensor) -> None:
    input, weight, mask, offset, bias = inputs
    ctx.save_for_backward(input, weight, mask)  # type: ignore[attr-defined]
    ctx.offset, ctx.biased = offset, bias is not None  # type: ignore[attr-defined]


def backward_masked_linear(ctx: object, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, mask = ctx.saved_tensors  # type: ignore[attr-defined]
    needs = ctx.needs_input_grad  # type: ignore[attr-defined]
    ops, offset = torch.ops.fastalter, ctx.offset  # type: ignore[attr-defined]
    return (
        ops.masked_linear_dgrad(grad, weight, mask, offset) if needs[0] else None,
        ops.masked_linear_wgrad(grad, input, mask, offset) if needs[1] else None,
        *(None, None),
        grad.reshape(-1, grad.shape[-1]).sum(0) if needs[4] else None,
    )


def setup_masked_conv2d(ctx: object, inputs: tuple[object, ...], output: Tensor) -> None:
    input, weight, mask, offset, _bias, *geometry = inputs
    ctx.save_for_backward(input, weight, mask)  # type: ignore[attr-defined]
    ctx.offset, ctx.geometry = offset, geometry  # type: ignore[attr-defined]


def backward_masked_conv2d(ctx: object, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, mask = ctx.saved_tensors  # type: ignore[attr-defined]
    needs, offset, geometry = ctx.needs_input_grad, ctx.offset, ctx.geometry  # type: ignore[attr-defined]
    ops, grad = torch.ops.fastalter, grad.contiguous()
    return (
        ops.masked_conv2d_dgrad(grad, weight, mask, offset, input.shape[2:], *geometry) if needs[0] else None,
        ops.masked_conv2d_wgrad(grad, input, mask, offset, weight.shape[2:], *geometry) if needs[1] else None,
        *(None, None),
        grad.sum((0, 2, 3)) if needs[4] else None,
        *(None, None, None),
    )


AUTOGRAD = {
    "masked_linear": (backward_masked_linear, setup_masked_linear),
    "masked_conv2d": (backward_masked_conv2d, setup_masked_conv2d),
}


# ---- typed wrappers -------------------------------------------------------------------------------------------------


def masked_linear(input: Tensor, weight: Tensor, mask: Tensor, offset: int = 0, bias: Tensor | None = None) -> Tensor:
    """F.linear(input, mu*weight, bias), differentiable.

    Args: input [..., I], weight [O, I], bias [O], of one floating dtype; low precisions accumulate in float32. mask:
    uint8; the bit of weight[o, i] is offset + o*I + i.
    Returns: [..., O]. Raises: MaskError if shapes, dtypes or devices do not fit, or the mask is too short.
    """
    check_same("masked_linear", {"input": input, "weight": weight, "bias": bias}, MaskError)
    if weight.dim() != 2 or input.dim() < 1 or input.shape[-1] != weight.shape[1]:
        shapes = f"input {tuple(input.shape)} and weight {tuple(weight.shape)}"
        raise MaskError(f"masked_linear: {shapes} do not fit: pass [..., I] and [O, I]")
    check_bits("masked_linear", mask, weight.numel(), offset, "weight")
    output: Tensor = backends.implementation("masked_linear", input.device)(input, weight, mask, offset, bias)
    return output


def masked_conv2d(
    input: Tensor,
    weight: Tensor,
    mask: Tensor,
    offset: int = 0,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    """F.conv2d(input, mu*weight, bias, stride, padding, dilation), differentiable; one group, zero padding.

    Args: input [B, I, H, W], weight [O, I, kh, kw], bias [O], of one floating dtype. mask as for `masked_linear`.
    Returns: [B, O, H', W']. Raises: MaskError if shapes, dtypes or devices do not fit, or the mask is too short.
    """
    check_same("masked_conv2d", {"input": input, "weight": weight, "bias": bias}, MaskError)
    if weight.dim() != 4 or input.dim() != 4 or input.shape[1] != weight.shape[1]:
        shapes = f"input {tuple(input.shape)} and weight {tuple(weight.shape)}"
        raise MaskError(f"masked_conv2d: {shapes} do not fit: pass [B, I, H, W] and [O, I, kh, kw]")
    check_bits("masked_conv2d", mask, weight.numel(), offset, "weight")
    geometry = [list(stride), list(padding), list(dilation)]
    run = backends.implementation("masked_conv2d", input.device)
    output: Tensor = run(input, weight, mask, offset, bias, *geometry)
    return output
