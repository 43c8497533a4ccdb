"""Linear and convolution layers of masked weights, mu * theta, and both of their backward products.

Low precisions are cast up and the result is cast once at the end, as the kernels accumulate; the outcome in float32
and float64 is torch's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def flags(mask: Tensor, offset: int, shape: Sequence[int]) -> Tensor:
    """bool, of this shape: element j (row-major) is bit offset + j of the mask, least significant first."""
    size = torch.Size(shape).numel()
    index = torch.arange(offset, offset + size, device=mask.device)
    return ((mask[index >> 3] >> (index & 7)) & 1).bool().view(*shape)


def masked_weight(weight: Tensor, mask: Tensor | None, offset: int) -> Tensor:
    """mu * theta: zero where the bit is 0 (also where theta is infinite or NaN)."""
    return weight if mask is None else weight.masked_fill(~flags(mask, offset, weight.shape), 0.0)


def _wide(*operands: Tensor) -> tuple[Tensor, ...]:
    """The operands in the dtype that sums accumulate in."""
    return tuple(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x for x in operands)


def masked_linear(input: Tensor, weight: Tensor, mask: Tensor, offset: int, bias: Tensor | None = None) -> Tensor:
    """input (mu*weight)^T + bias."""
    x, w = _wide(input, masked_weight(weight, mask, offset))
    return F.linear(x, w, None if bias is None else bias.to(x.dtype)).to(input.dtype)


def masked_linear_dgrad(grad: Tensor, weight: Tensor, mask: Tensor, offset: int) -> Tensor:
    """dL/dinput = grad (mu*weight)."""
    g, w = _wide(grad, masked_weight(weight, mask, offset))
    return (g @ w).to(grad.dtype)


def masked_linear_wgrad(grad: Tensor, input: Tensor, mask: Tensor, offset: int) -> Tensor:
    """dL/dweight = mu * (grad^T input), summed over all leading dimensions."""
    g, x = _wide(grad.reshape(-1, grad.shape[-1]), input.reshape(-1, input.shape[-1]))
    return masked_weight((g.t() @ x).to(grad.dtype), mask, offset)


def masked_conv2d(
    input: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    offset: int,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """conv2d(input, mu*weight) + bias."""
    x, w = _wide(input, masked_weight(weight, mask, offset))
    return F.conv2d(x, w, None if bias is None else bias.to(x.dtype), stride, padding, dilation).to(input.dtype)


def masked_conv2d_dgrad(
    grad: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    offset: int,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """dL/dinput [B, I, *size]."""
    g, w = _wide(grad, masked_weight(weight, mask, offset))
    x = g.new_empty(grad.shape[0], weight.shape[1], *size)
    return _conv_backward(g, x, w, stride, padding, dilation, 0).to(grad.dtype)


def masked_conv2d_wgrad(
    grad: Tensor,
    input: Tensor,
    mask: Tensor | None,
    offset: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """dL/dweight [O, I, *kernel], times mu."""
    g, x = _wide(grad, input)
    w = g.new_empty(grad.shape[1], input.shape[1], *kernel)
    return masked_weight(_conv_backward(g, x, w, stride, padding, dilation, 1).to(grad.dtype), mask, offset)


def _conv_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    which: int,
) -> Tensor:
    """torch's convolution backward: for the input (0) or for the weight (1). The other's values are not read."""
    wanted = [which == 0, which == 1, False]
    backward = torch.ops.aten.convolution_backward.default
    found: Tensor = backward(grad, input, weight, None, stride, padding, dilation, False, [0, 0], 1, wanted)[which]
    return found
