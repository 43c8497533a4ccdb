"""Convolution with a bit-masked weight and both of its backward products, as implicit matrix products.

The mask is applied as the weight is packed for the product (gemm.py). Forward and dgrad are one kernel: the dgrad of a
convolution is the product with the taps turned round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from fastalter.ops.masked import conv_size
from fastalter.triton_kernels import common, gemm
from fastalter.triton_kernels.budget import Specialisation


@triton.jit
def _masked_conv2d_kernel(
    x, w, bias, y, M, N, PIXELS, OUT_W, H, W, C, K,
    KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, TRANSPOSED: tl.constexpr, BIASED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """y [B, M, PIXELS] = w x' + bias; see `gemm.implicit_product`.

    One program per tile of BLOCK_M channels and BLOCK_N pixels; the tiles of the same pixels are neighbours, so that
    the gathered operand comes from memory once. A block of the sum brings 2*BLOCK_M*BLOCK_N*BLOCK_K operations for
    (BLOCK_M + BLOCK_N)*BLOCK_K elements: 64 operations a byte at 128 x 128 in half precision, from the L2.
    """
    tiles_m = tl.cdiv(M, BLOCK_M)
    o_m = (tl.program_id(0) % tiles_m) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = (tl.program_id(0) // tiles_m) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = gemm.zeros(BLOCK_M, BLOCK_N, x.dtype.element_ty)
    acc = gemm.implicit_product(
        acc, x, w, o_m, o_n, M, N, PIXELS, OUT_W, H, W, C, K,
        KW, SH, SW, PH, PW, DH, DW, TRANSPOSED, BLOCK_K, PRECISION, WIDEN,
    )  # fmt: skip
    if BIASED:
        b_bias = tl.load(bias + o_m, mask=o_m < M, other=0.0)
        acc += b_bias.to(acc.dtype)[:, None]
    # [BLOCK_M, BLOCK_N]
    m_y = (o_m < M)[:, None] & (o_n < N)[None, :]
    tl.store(y + gemm.pixel_offsets(o_m, o_n, M, PIXELS), acc.to(y.dtype.element_ty), mask=m_y)


def _convolve(
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    offset: int,
    bias: Tensor | None,
    size: tuple[int, int],
    geometry: Sequence[Sequence[int]],
    transposed: bool,
    precision: str,
) -> Tensor:
    """The product of x's channels-last form with the packed weight, as a contiguous [B, channels, *size]."""
    channels = weight.shape[1] if transposed else weight.shape[0]
    y = x.new_empty(x.shape[0], channels, *size)
    gemm.check_count(gemm.pixels(y))
    if y.numel() == 0:
        return y
    with common.device_of(x):
        w = gemm.pack_weight(weight, None if mask is None else gemm.words(mask), offset, transposed)
        x = gemm.channels_last(x)
        pixels = gemm.pixels(y)
        block = gemm.tile_for("conv", x, channels, precision)
        _masked_conv2d_kernel[(triton.cdiv(channels, block.rows) * triton.cdiv(pixels, block.columns),)](
            x, w, y if bias is None else bias.contiguous(), y, channels, pixels, size[0] * size[1], size[1],
            *x.shape[1:], w[0].numel(),
            **gemm.geometry(weight.shape[2:], *geometry), TRANSPOSED=transposed, BIASED=bias is not None,
            **block.blocks(), PRECISION=precision, WIDEN=gemm.widen(x.dtype), **block.options(),
        )  # fmt: skip
    return y


def launch_masked_conv2d(
    input: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    offset: int,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    precision: str = "ieee",
) -> Tensor:
    """conv2d(input, mu*weight) + bias. precision: "ieee" or "tf32", for float32 tensors."""
    size = conv_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    return _convolve(input, weight, mask, offset, bias, size, (stride, padding, dilation), False, precision)


def launch_masked_conv2d_dgrad(
    grad: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    offset: int,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    precision: str = "ieee",
) -> Tensor:
    """dL/dinput [B, I, *size]. A stride s leaves 1 in s*s of the products at work: right, and right only."""
    height, width = size
    return _convolve(grad, weight, mask, offset, None, (height, width), (stride, padding, dilation), True, precision)


def launch_masked_conv2d_wgrad(
    grad: Tensor,
    input: Tensor,
    mask: Tensor | None,
    offset: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    precision: str = "ieee",
) -> Tensor:
    """mu * dL/dweight [O, I, *kernel]."""
    with common.device_of(input):
        g = gemm.channels_last(grad)
        return gemm.wgrad(
            g.flatten(0, 2),
            gemm.channels_last(input),
            grad.shape[3],
            grad.shape[2] * grad.shape[3],
            (grad.shape[1], input.shape[1], *kernel),
            None if mask is None else gemm.words(mask),
            offset,
            gemm.geometry(kernel, stride, padding, dilation),
            precision,
        )


# (dtype, arch class) -> (registers, bytes of shared memory), as compiled by Triton 3.8, registers rounded up to 8.
_BUDGETS: dict[str, gemm.Budgets] = {
    "forward": {
        ("bf16", "ampere"): (128, 49152),
        ("bf16", "small"): (128, 49152),
        ("bf16", "hopper"): (120, 98304),
        ("bf16", "blackwell"): (88, 98320),
        ("fp16", "ampere"): (128, 49152),
        ("fp16", "hopper"): (120, 98304),
        ("tf32", "any"): (144, 49168),
        ("fp32", "any"): (128, 8192),
        ("fp64", "any"): (72, 4096),
    },
    "narrow": {
        ("bf16", "ampere"): (192, 49152),
        ("bf16", "small"): (184, 49152),
        ("bf16", "hopper"): (128, 73728),
        ("bf16", "blackwell"): (96, 73744),
    },
    "dgrad": {
        ("bf16", "ampere"): (128, 49152),
        ("bf16", "small"): (128, 49152),
        ("bf16", "hopper"): (120, 98304),
        ("bf16", "blackwell"): (88, 98320),
        ("fp32", "any"): (128, 8192),
    },
    "dgrad, stride 2": {
        ("bf16", "ampere"): (128, 49152),
        ("bf16", "small"): (128, 49152),
        ("bf16", "hopper"): (120, 98304),
        ("bf16", "blackwell"): (88, 98320),
    },
    "wgrad": {
        ("bf16", "ampere"): (184, 49152),
        ("bf16", "small"): (112, 36864),
        ("bf16", "hopper"): (128, 98304),
        ("bf16", "blackwell"): (128, 98320),
        ("fp16", "hopper"): (128, 98304),
        ("fp32", "any"): (96, 8192),
        ("fp64", "any"): (72, 4096),
    },
    "wgrad, narrow": {
        ("bf16", "ampere"): (168, 36864),
        ("bf16", "small"): (168, 36864),
        ("bf16", "hopper"): (128, 49152),
        ("bf16", "blackwell"): (128, 49168),
    },
    "wgrad, tf32": {
        ("tf32", "any"): (128, 49168),
    },
}

_FORWARD = {**gemm.SAME_3X3, "TRANSPOSED": False, "BIASED": False}
_DGRAD = {**_FORWARD, "TRANSPOSED": True}
_POINTERS = dict.fromkeys(("x", "w", "bias", "y"))
_SIZES = ("M", "N", "PIXELS", "C", "K")
_WGRAD_POINTERS = {"g": None, "x": None, "partials": "accumulator"}
_WGRAD_SIZES = ("M", "N", "PIXELS", "M_PADDED", "C", "OUT_PIXELS", "chunk")


def _product(op: str, form: str, constants: dict[str, Any], budgets: str, rows: int = 256) -> list[Specialisation]:
    return gemm.matrix_forms(
        op, form, _masked_conv2d_kernel, "conv", _POINTERS, constants, _SIZES, _BUDGETS[budgets], rows
    )


def _wgrad(form: str, budgets: str, rows: int = 256, wide: bool = True) -> list[Specialisation]:
    return gemm.matrix_forms(
        "masked_conv2d_wgrad", form, gemm._wgrad_kernel, "wgrad", _WGRAD_POINTERS, gemm.SAME_3X3, _WGRAD_SIZES,
        _BUDGETS[budgets], rows, wide,
    )  # fmt: skip


SPECIALISATIONS = [
    *gemm.SPECIALISATIONS,
    *_product("masked_conv2d", "3 x 3", _FORWARD, "forward"),
    *_product("masked_conv2d", "3 x 3, 64 channels", _FORWARD, "narrow", rows=64),
    *_product("masked_conv2d_dgrad", "3 x 3", _DGRAD, "dgrad"),
    *_product("masked_conv2d_dgrad", "3 x 3, stride 2", {**_DGRAD, "SH": 2, "SW": 2}, "dgrad, stride 2"),
    *_wgrad("3 x 3", "wgrad"),
    *_wgrad("3 x 3, 64 channels", "wgrad, narrow", rows=64),
    # tf32 operands must lie along the sum, which is the pixels here, while the channels are contiguous: 32-bit copies.
    *_wgrad("3 x 3", "wgrad, tf32", wide=False),
]
