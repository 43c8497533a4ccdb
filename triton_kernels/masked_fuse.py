"""Both products of a convolution over two concatenated features, and batch norm's five sums, in one launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastalter.ops.masked import conv_size
from fastalter.triton_kernels import common, gemm
from fastalter.triton_kernels.budget import Specialisation


@triton.jit
def _masked_fuse_kernel(
    first, second, w_first, w_second, y_first, y_second, partials,
    M, N, PIXELS, OUT_W, H, W, C_FIRST, C_SECOND, K_FIRST, K_SECOND,
    KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, SECOND: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """P_first = w_first first', P_second = w_second second', and a tile's sums of both, their squares, their product.

    One program per tile of BLOCK_M channels and BLOCK_N pixels, channels first, as in `_masked_conv2d_kernel`. The
    implicit product runs over the first feature's taps and channels, then over the second's, into an accumulator each:
    the features lie where they lie and are never concatenated. The sums are those of the products as stored, rounded to
    the output dtype, for these are what the norm will read. The block reads its two tiles back for them, from the cache
    they were just written to: keeping the first in registers while the second accumulates spills on sm_80 and sm_100.
    That replaces the sweep over both products that a norm begins with (33 MB at BEVFusion's fuser in half precision).
    partials [5, M, tiles of pixels]: P1, P1^2, P2, P2^2, P1*P2 of one tile, float32 (float64 for float64). Without
    SECOND there is only the first feature, with the very same product and sums.
    """
    tiles_m = tl.cdiv(M, BLOCK_M)
    i_m = tl.program_id(0) % tiles_m
    i_n = tl.program_id(0) // tiles_m
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_m = o_m < M
    # [BLOCK_M, BLOCK_N]
    m_y = m_m[:, None] & (o_n < N)[None, :]
    o_y = gemm.pixel_offsets(o_m, o_n, M, PIXELS)

    acc = gemm.zeros(BLOCK_M, BLOCK_N, first.dtype.element_ty)
    wide: tl.constexpr = acc.dtype
    acc = gemm.implicit_product(
        acc, first, w_first, o_m, o_n, M, N, PIXELS, OUT_W, H, W, C_FIRST, K_FIRST,
        KW, SH, SW, PH, PW, DH, DW, False, BLOCK_K, PRECISION, WIDEN,
    )  # fmt: skip
    tl.store(y_first + o_y, acc.to(y_first.dtype.element_ty), mask=m_y)

    if SECOND:
        acc = gemm.zeros(BLOCK_M, BLOCK_N, first.dtype.element_ty)
        acc = gemm.implicit_product(
            acc, second, w_second, o_m, o_n, M, N, PIXELS, OUT_W, H, W, C_SECOND, K_SECOND,
            KW, SH, SW, PH, PW, DH, DW, False, BLOCK_K, PRECISION, WIDEN,
        )  # fmt: skip
        tl.store(y_second + o_y, acc.to(y_second.dtype.element_ty), mask=m_y)

    # The block's own stores, made visible to all its threads.
    tl.debug_barrier()
    b_first = tl.load(y_first + o_y, mask=m_y, other=0.0).to(wide)
    # [BLOCK_M]
    tiles_n = tl.cdiv(N, BLOCK_N)
    p_sum = partials + o_m.to(tl.int64) * tiles_n + i_n
    step = tl.cast(M, tl.int64) * tiles_n
    tl.store(p_sum, tl.sum(b_first, 1), mask=m_m)
    tl.store(p_sum + step, tl.sum(b_first * b_first, 1), mask=m_m)
    if SECOND:
        b_second = tl.load(y_second + o_y, mask=m_y, other=0.0).to(wide)
        tl.store(p_sum + 2 * step, tl.sum(b_second, 1), mask=m_m)
        tl.store(p_sum + 3 * step, tl.sum(b_second * b_second, 1), mask=m_m)
        tl.store(p_sum + 4 * step, tl.sum(b_first * b_second, 1), mask=m_m)


def launch_masked_fuse(
    first: Tensor,
    second: Tensor | None,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    precision: str = "ieee",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(P_first, P_second, sums_first [2, O], sums_second [2, O], sums_cross [O]); precision: "ieee" or "tf32".

    Without a second feature its results are empty.
    """
    features = [first] if second is None else [first, second]
    size = conv_size(first.shape[2:], weight.shape[2:], stride, padding, dilation)
    channels, width = weight.shape[0], first.shape[1]
    y = [first.new_empty(first.shape[0], channels, *size) for _ in features]
    gemm.check_count(gemm.pixels(y[0]))
    sums = 2 if second is None else 5
    if y[0].numel() == 0:
        return *_both(y), *split_sums(first.new_zeros(sums, channels, 0))
    with common.device_of(first):
        halves = (weight[:, :width], weight[:, width:])[: len(features)]
        w = [gemm.pack_weight(half, None, 0, False) for half in halves]
        x = [gemm.channels_last(feature) for feature in features]
        pixels = gemm.pixels(y[0])
        block = gemm.tile_for("fuse", first, channels, precision)
        tiles = triton.cdiv(pixels, block.columns)
        wide = torch.float64 if first.dtype == torch.float64 else torch.float32
        partials = first.new_empty(sums, channels, tiles, dtype=wide)
        a, b = 0, len(features) - 1  # where there is no second feature the first stands in, unread
        _masked_fuse_kernel[(triton.cdiv(channels, block.rows) * tiles,)](
            x[a], x[b], w[a], w[b], y[a], y[b], partials,
            channels, pixels, size[0] * size[1], size[1], *x[0].shape[1:3],
            x[a].shape[3], x[b].shape[3], w[a][0].numel(), w[b][0].numel(),
            **gemm.geometry(weight.shape[2:], stride, padding, dilation), SECOND=second is not None, **block.blocks(),
            PRECISION=precision, WIDEN=gemm.widen(first.dtype), **block.options(),
        )  # fmt: skip
        return *_both(y), *split_sums(partials)


def _both(y: list[Tensor]) -> tuple[Tensor, Tensor]:
    return y[0], y[1] if len(y) == 2 else y[0].new_empty(0)


def split_sums(partials: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The ordered float64 sums of [5 or 2, O, tiles] as (sums_first, sums_second, sums_cross), empty where there is
    none.

    torch's own sum over the last dimension, which adds in an order that the shape alone fixes; 1.3 MB at the fuser.
    """
    sums = partials.sum(-1, dtype=torch.float64)
    if len(sums) == 2:
        return sums, sums.new_empty(0), sums.new_empty(0)
    return sums[0:2].clone(), sums[2:4].clone(), sums[4].clone()


# (dtype, arch class) -> (registers, bytes of shared memory), as compiled by Triton 3.8, registers rounded up to 8.
_BUDGETS: dict[str, gemm.Budgets] = {
    "wide": {
        ("bf16", "ampere"): (184, 65536),
        ("bf16", "small"): (184, 49152),
        ("bf16", "hopper"): (216, 131072),
        ("bf16", "blackwell"): (184, 131088),
        ("fp16", "ampere"): (184, 65536),
        ("fp16", "hopper"): (208, 131072),
        ("tf32", "any"): (192, 49168),
        ("fp32", "any"): (224, 8192),
        ("fp64", "any"): (88, 4096),
    },
    "narrow": {
        ("bf16", "ampere"): (216, 36864),
        ("bf16", "small"): (184, 36864),
        ("bf16", "hopper"): (176, 49152),
        ("bf16", "blackwell"): (168, 49168),
    },
    "one": {
        ("bf16", "ampere"): (128, 65536),
        ("bf16", "small"): (128, 49152),
        ("bf16", "hopper"): (120, 131072),
        ("bf16", "blackwell"): (88, 131088),
    },
}


def _forms(form: str, budgets: str, rows: int = 256, second: bool = True) -> list[Specialisation]:
    pointers = dict.fromkeys(("first", "second", "w_first", "w_second", "y_first", "y_second"))
    sizes = ("M", "N", "PIXELS", "C_FIRST", "C_SECOND", "K_FIRST", "K_SECOND")
    return gemm.matrix_forms(
        "masked_fuse", form, _masked_fuse_kernel, "fuse", {**pointers, "partials": "accumulator"},
        {**gemm.SAME_3X3, "SECOND": second}, sizes, _BUDGETS[budgets], rows,
    )  # fmt: skip


SPECIALISATIONS = [
    *_forms("3 x 3", "wide"),
    *_forms("3 x 3, 64 channels", "narrow", rows=64),
    *_forms("3 x 3, one feature", "one", second=False),
]
