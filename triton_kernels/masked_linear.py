"""Linear layers with a bit-masked weight: the mask is applied to each weight tile as it is loaded.

The masked operand comes first in every product (the output is computed transposed), because the matrix units of
Hopper and Blackwell take their first operand from registers or tensor memory, where the mask has been applied; the
second one they take from shared memory, where a copy engine puts it untouched.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastalter.triton_kernels import common, gemm


@triton.jit
def _masked_linear_kernel(
    x, w, mask, bias, y, words, offset, M, N, K,
    BIASED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """y [N, M] = x [N, K] (mu*w [M, K])' + bias.

    One program per tile of BLOCK_M features and BLOCK_N rows of x, features first. Beside the operands' elements a
    block of the sum reads 16 bytes of mask a feature: 64 bits at any alignment lie in two words (BLOCK_K <= 64).
    """
    tiles_m = tl.cdiv(M, BLOCK_M)
    o_m = (tl.program_id(0) % tiles_m) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = (tl.program_id(0) // tiles_m) * BLOCK_N + tl.arange(0, BLOCK_N)
    p_w = w + (o_m.to(tl.int64) * K)[:, None]
    p_x = x + (o_n.to(tl.int64) * K)[:, None]
    o_bit = offset + o_m.to(tl.int64) * K
    acc = gemm.zeros(BLOCK_M, BLOCK_N, x.dtype.element_ty)
    for i_k in range(0, tl.cdiv(K, BLOCK_K)):
        o_k = i_k * BLOCK_K + tl.arange(0, BLOCK_K)
        # [BLOCK_M, BLOCK_K]
        b_w = tl.load(p_w + o_k[None, :], mask=(o_m < M)[:, None] & (o_k < K)[None, :], other=0.0)
        b_w = tl.where(gemm.kept(mask, words, o_bit + i_k * BLOCK_K, BLOCK_K), b_w, 0.0)
        # [BLOCK_N, BLOCK_K]
        b_x = tl.load(p_x + o_k[None, :], mask=(o_n < N)[:, None] & (o_k < K)[None, :], other=0.0)
        # [BLOCK_M, BLOCK_N]
        acc = gemm.multiply(b_w, tl.trans(b_x), acc, PRECISION, WIDEN)
    if BIASED:
        b_bias = tl.load(bias + o_m, mask=o_m < M, other=0.0)
        acc += b_bias.to(acc.dtype)[:, None]
    p_y = y + (o_n.to(tl.int64) * M)[:, None] + o_m[None, :]
    tl.store(p_y, tl.trans(acc).to(y.dtype.element_ty), mask=(o_n < N)[:, None] & (o_m < M)[None, :])


@triton.jit
def _masked_linear_dgrad_kernel(
    g, w, mask, dx, words, offset, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """dx [N, M] = g [N, K] (mu*w [K, M]); M is the layer's width in, K its width out.

    As `_masked_linear_kernel`, except that a weight tile's rows run along M: 64 bits of mask a row, BLOCK_M <= 64.
    """
    tiles_m = tl.cdiv(M, BLOCK_M)
    o_m = (tl.program_id(0) % tiles_m) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = (tl.program_id(0) // tiles_m) * BLOCK_N + tl.arange(0, BLOCK_N)
    p_g = g + (o_n.to(tl.int64) * K)[:, None]
    o_bit = offset + (tl.program_id(0) % tiles_m).to(tl.int64) * BLOCK_M
    acc = gemm.zeros(BLOCK_M, BLOCK_N, g.dtype.element_ty)
    for i_k in range(0, tl.cdiv(K, BLOCK_K)):
        o_k = i_k * BLOCK_K + tl.arange(0, BLOCK_K)
        # [BLOCK_K, BLOCK_M]
        p_w = w + (o_k.to(tl.int64) * M)[:, None] + o_m[None, :]
        b_w = tl.load(p_w, mask=(o_k < K)[:, None] & (o_m < M)[None, :], other=0.0)
        b_w = tl.where(gemm.kept(mask, words, o_bit + o_k.to(tl.int64) * M, BLOCK_M), b_w, 0.0)
        # [BLOCK_N, BLOCK_K]
        b_g = tl.load(p_g + o_k[None, :], mask=(o_n < N)[:, None] & (o_k < K)[None, :], other=0.0)
        # [BLOCK_M, BLOCK_N]
        acc = gemm.multiply(tl.trans(b_w), tl.trans(b_g), acc, PRECISION, WIDEN)
    p_dx = dx + (o_n.to(tl.int64) * M)[:, None] + o_m[None, :]
    tl.store(p_dx, tl.trans(acc).to(dx.dtype.element_ty), mask=(o_n < N)[:, None] & (o_m < M)[None, :])


def launch_masked_linear(
    input: Tensor, weight: Tensor, mask: Tensor, offset: int, bias: Tensor | None = None, precision: str = "ieee"
) -> Tensor:
    """input (mu*weight)^T + bias. precision: "ieee" or "tf32", for float32 tensors."""
    m, k = weight.shape
    y = input.new_empty(*input.shape[:-1], m)
    if y.numel() == 0:
        return y
    with common.device_of(input):
        bits, n = gemm.words(mask), y.numel() // m
        gemm.check_count(n)
        block = gemm.tile_for("linear", input, m, precision)
        _masked_linear_kernel[(triton.cdiv(m, block.rows) * triton.cdiv(n, block.columns),)](
            input.contiguous(), weight.contiguous(), bits, y if bias is None else bias.contiguous(), y,
            bits.numel(), offset, m, n, k, BIASED=bias is not None, **block.blocks(),
            PRECISION=precision, WIDEN=gemm.widen(input.dtype), **block.options(),
        )  # fmt: skip
    return y


def launch_masked_linear_dgrad(
    grad: Tensor, weight: Tensor, mask: Tensor, offset: int, precision: str = "ieee"
) -> Tensor:
    """dL/dinput = grad (mu*weight)."""
    k, m = weight.shape
    dx = grad.new_empty(*grad.shape[:-1], m)
    if dx.numel() == 0:
        return dx
    with common.device_of(grad):
        bits, n = gemm.words(mask), dx.numel() // m
        gemm.check_count(n)
        block = gemm.tile_for("linear_dgrad", grad, m, precision)
        _masked_linear_dgrad_kernel[(triton.cdiv(m, block.rows) * triton.cdiv(n, block.columns),)](
            grad.contiguous(), weight.contiguous(), bits, dx, bits.numel(), offset, m, n, k, **block.blocks(),
            PRECISION=precision, WIDEN=gemm.widen(grad.dtype), **block.options(),
        )  # fmt: skip
    return dx


def launch_masked_linear_wgrad(
    grad: Tensor, input: Tensor, mask: Tensor, offset: int, precision: str = "ieee"
) -> Tensor:
    """mu * (grad^T input) over all leading dimensions: a 1 x 1 convolution's wgrad over a batch of single pixels."""
    of_out, of_in = grad.shape[-1], input.shape[-1]
    with common.device_of(grad):
        g = grad.contiguous().view(-1, of_out)
        x = input.contiguous().view(-1, 1, 1, of_in)
        gemm.check_count(x.shape[0])
        constants = gemm.geometry((1, 1), (1, 1), (0, 0), (1, 1))
        found = gemm.wgrad(g, x, 1, 1, (of_out, of_in, 1, 1), gemm.words(mask), offset, constants, precision)
    return found.view(of_out, of_in)


# (dtype, arch class) -> (registers, bytes of shared memory), as compiled by Triton 3.8, registers rounded up to 8.
_BUDGETS: dict[str, gemm.Budgets] = {
    "forward": {
        ("bf16", "ampere"): (160, 63488),
        ("bf16", "small"): (160, 63488),
        ("bf16", "hopper"): (248, 167936),
        ("bf16", "blackwell"): (184, 135184),
        ("fp16", "hopper"): (248, 167936),
        ("tf32", "any"): (144, 59392),
        ("fp32", "any"): (152, 16384),
        ("fp64", "any"): (72, 8192),
    },
    "narrow": {
        ("bf16", "ampere"): (168, 44032),
        ("bf16", "small"): (176, 44032),
        ("bf16", "hopper"): (152, 56320),
        ("bf16", "blackwell"): (96, 48144),
    },
    "dgrad": {
        ("bf16", "ampere"): (168, 42496),
        ("bf16", "small"): (168, 42496),
        ("bf16", "hopper"): (184, 175104),
        ("bf16", "blackwell"): (112, 166928),
        ("fp16", "hopper"): (184, 175104),
        ("tf32", "any"): (128, 58368),
        ("fp32", "any"): (128, 16384),
        ("fp64", "any"): (72, 8192),
    },
    "wgrad": {
        ("bf16", "ampere"): (176, 49152),
        ("bf16", "small"): (112, 36864),
        ("bf16", "hopper"): (112, 98304),
        ("bf16", "blackwell"): (128, 98320),
        ("fp32", "any"): (96, 8192),
    },
}

_FORWARD = {"x": None, "w": None, "mask": "i64", "bias": None, "y": None}
_DGRAD = {"g": None, "w": None, "mask": "i64", "dx": None}
_SIZES = ("M", "N", "K")
_WGRAD = {"g": None, "x": None, "partials": "accumulator"}
# A batch of single pixels: Triton makes constants of the sizes that are 1.
_PIXEL = {**gemm.POINTWISE, "OUT_PIXELS": 1, "OUT_W": 1, "H": 1, "W": 1}

SPECIALISATIONS = [
    *gemm.matrix_forms(
        "masked_linear", "", _masked_linear_kernel, "linear", _FORWARD, {"BIASED": True}, _SIZES, _BUDGETS["forward"]
    ),
    *gemm.matrix_forms(
        "masked_linear", "64 features", _masked_linear_kernel, "linear", _FORWARD, {"BIASED": True}, _SIZES,
        _BUDGETS["narrow"], rows=64,
    ),
    *gemm.matrix_forms(
        "masked_linear_dgrad", "", _masked_linear_dgrad_kernel, "linear_dgrad", _DGRAD, {}, _SIZES, _BUDGETS["dgrad"]
    ),
    *gemm.matrix_forms(
        "masked_linear_wgrad", "", gemm._wgrad_kernel, "wgrad", _WGRAD, _PIXEL,
        ("M", "N", "PIXELS", "M_PADDED", "C", "chunk"), _BUDGETS["wgrad"],
    ),
]  # fmt: skip
