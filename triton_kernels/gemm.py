"""What the matrix kernels share: tiles, mask bits on load, packed operands, the implicit product, split reductions.

A convolution is a matrix product whose second operand is gathered. Tensors come as NCHW; what is gathered is read
channels-last, with rows padded to 16 channels, because there a tile's inner dimension is contiguous, aligned and the
same for every tap: each access is 128 bits, asynchronous, and no tap's shift breaks its alignment. The re-layout costs
a sweep over a feature (43 MB for both of BEVFusion's, against 50 GFLOP of product) and nothing where a tensor is
channels-last already. Results are written as NCHW from the accumulators.

Tiles of half precision, rows x columns x depth, and why (tables HALF and OTHERS):

    conv, wgrad   128 x 128 with 8 warps is 64 accumulator registers a thread. In forward and dgrad that leaves room for
                  two blocks on an SM, one of which computes while the other fills its stages or stores: 48 KB each on
                  sm_80 and where an SM has 100 KB (sm_86, sm_89, sm_120), 96 KB each on sm_90 and sm_100, whose matrix
                  units want a depth of 64. BEVFusion's fuser (256 channels, 180 x 180 pixels, batch 1) is 508 tiles:
                  2.4 waves of an A100's 216 blocks, 1.9 of an H100's 264. 128 columns of wgrad would spill on sm_120.
    fuse          two products a tile need the registers of one block an SM, so the stages are deeper where they fit.
    linear        as conv, but the weight passes through registers, where its mask costs 6 to 8 instructions an element:
                  on sm_90 and sm_100 256 columns share them. BLOCK_K is at most 64, a word of mask bits.
    linear_dgrad  the mask bits run along the rows: at most 64 of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastalter.triton_kernels.budget import ARCHS, Budget, Specialisation

ALIGNED = 16  # channels to which packed rows are padded: 128-bit accesses in every dtype
MAX_SPLITS = 64
PROGRAMS = 512  # a split reduction aims at this many programs: about 4 for each SM of an A100 or H100


# ---- launch table ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """One program's block of the product: rows x columns, depth at a time along the sum."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int

    def blocks(self) -> dict[str, int]:
        """As the kernels' constexpr arguments."""
        return {"BLOCK_M": self.rows, "BLOCK_N": self.columns, "BLOCK_K": self.depth}

    def options(self) -> dict[str, Any]:
        """As launch options. A float32 product is multiply-adds, so they stay fused."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


# Shared memory decides the class: 163 KB a block on sm_80, 227 KB on sm_90 and sm_100, 99 KB on the rest.
ARCH_CLASSES = {80: "ampere", 86: "small", 89: "small", 90: "hopper", 100: "blackwell", 120: "small"}
SMALL = "small"  # what an unknown GPU is taken for: its tiles fit everywhere

# Half precision: (kind, arch class) -> (any number of rows, at most 64 rows: output channels of a narrow layer). The
# reasons are above.
_A100, _H100 = Tile(128, 128, 32, 8, 4), Tile(128, 128, 64, 8, 3)
_NARROW, _NARROW_DEEP = Tile(64, 128, 32, 4, 4), Tile(64, 128, 64, 4, 3)
HALF: dict[tuple[str, str], tuple[Tile, Tile]] = {
    ("conv", "ampere"): (_A100, _NARROW_DEEP),
    ("conv", "small"): (_A100, _NARROW_DEEP),
    ("conv", "hopper"): (_H100, _NARROW_DEEP),
    ("conv", "blackwell"): (_H100, _NARROW_DEEP),
    ("wgrad", "ampere"): (_A100, _NARROW),
    ("wgrad", "small"): (Tile(128, 64, 32, 8, 4), _NARROW),
    ("wgrad", "hopper"): (_H100, _NARROW),
    ("wgrad", "blackwell"): (_H100, _NARROW),
    ("fuse", "ampere"): (Tile(128, 128, 32, 8, 5), _NARROW),
    ("fuse", "small"): (_A100, _NARROW),
    ("fuse", "hopper"): (Tile(128, 128, 64, 8, 4), _NARROW),
    ("fuse", "blackwell"): (Tile(128, 128, 64, 8, 4), _NARROW),
    ("linear", "ampere"): (_A100, _NARROW),
    ("linear", "small"): (_A100, _NARROW),
    ("linear", "hopper"): (Tile(128, 256, 64, 8, 3), _NARROW),
    ("linear", "blackwell"): (Tile(128, 256, 64, 8, 3), _NARROW),
    ("linear_dgrad", "ampere"): (_NARROW, _NARROW),
    ("linear_dgrad", "small"): (_NARROW, _NARROW),
    ("linear_dgrad", "hopper"): (Tile(64, 256, 64, 8, 4), _NARROW),
    ("linear_dgrad", "blackwell"): (Tile(64, 256, 64, 8, 4), _NARROW),
}
# The rest, for every kind and GPU. float32: exact products run on the FMA pipes, 32 accumulators a thread, and wait for
# those, not for memory. tf32: tensor cores, on request. float64: for oracles.
OTHERS = {"float32": Tile(64, 64, 16, 4, 2), "tf32": Tile(64, 64, 32, 4, 3), "float64": Tile(32, 32, 8, 4, 2)}
# Under the interpreter a program costs a millisecond whatever its size.
INTERPRETED = Tile(32, 64, 32, 4, 1)


def arch_class(device: torch.device) -> str:
    if triton.knobs.runtime.interpret:
        return "interpreter"
    major, minor = torch.cuda.get_device_capability(device)
    return ARCH_CLASSES.get(10 * major + minor, SMALL)


def tile(kind: str, arch: str, dtype: str, rows: int) -> Tile:
    """The tables' entry for a product with this many rows; dtype: "half", "float32", "tf32" or "float64"."""
    if arch == "interpreter":
        return INTERPRETED
    return OTHERS[dtype] if dtype in OTHERS else HALF[kind, arch][rows <= 64]


def tile_for(kind: str, x: Tensor, rows: int, precision: str) -> Tile:
    exact = "tf32" if precision == "tf32" else "float32"
    dtype = {torch.float32: exact, torch.float64: "float64"}.get(x.dtype, "half")
    return tile(kind, arch_class(x.device), dtype, rows)


# ---- device functions -----------------------------------------------------------------------------------------------


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """acc + a b, accumulated in acc's dtype. WIDEN: the interpreter has no arithmetic of low precisions."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)


@triton.jit
def zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr, DTYPE: tl.constexpr):
    """Accumulators for operands of this dtype."""
    WIDE: tl.constexpr = tl.float64 if DTYPE.primitive_bitwidth == 64 else tl.float32
    return tl.zeros([ROWS, COLUMNS], WIDE)


@triton.jit
def kept(mask, words, first, COLUMNS: tl.constexpr):
    """[ROWS] first bits -> [ROWS, COLUMNS]: whether bit first + column is set. At most 64 columns.

    The bits of a row are cut out of two neighbouring 64-bit words, so that any alignment costs two loads a row.
    """
    word = first >> 6
    # [ROWS]
    b_low = tl.load(mask + word, mask=word < words, other=0).to(tl.uint64)
    b_high = tl.load(mask + word + 1, mask=word + 1 < words, other=0).to(tl.uint64)
    shift = (first & 63).to(tl.uint64)
    b_bits = (b_low >> shift) | ((b_high << 1) << (63 - shift))
    # [ROWS, COLUMNS]
    return ((b_bits[:, None] >> tl.arange(0, COLUMNS)[None, :].to(tl.uint64)) & 1) != 0


@triton.jit
def bit(mask, o):
    """Whether bit o is set, for each of a block of positions that lie within the mask where they are used."""
    b_word = tl.load(mask + (o >> 6), mask=o >= 0, other=0).to(tl.uint64)
    return ((b_word >> (o & 63).to(tl.uint64)) & 1) != 0


@triton.jit
def within(o, size):
    """0 <= o < size, as one comparison."""
    return o.to(tl.uint32) < tl.cast(size, tl.uint32)


@triton.jit
def implicit_product(
    acc, x, w, o_m, o_n, M, N, PIXELS, OUT_W, H, W, C, K,
    KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, TRANSPOSED: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """acc + w x', where x' [K, N] is gathered: element (tap, c) of column n is what tap sees of channel c at pixel n.

    w [M, K] is packed with K = taps*C; x [B, H, W, C] is channels-last; n counts the pixels of [B, PIXELS], each image
    rows of OUT_W.
    TRANSPOSED: the taps run backwards and only every SH-th row and SW-th column exists, which is convolution's dgrad.
    Offsets are 64 bits wide between images and 32 within one (`check_count`).
    The sum runs over taps and channels as one dimension: with 80 channels, blocks of 64 waste 6 % of the last one
    instead of 37 % of every tap's.
    """
    # [BLOCK_N] the pixels' images, rows and columns
    o_b = o_n // PIXELS
    o_q = o_n % PIXELS
    o_p = o_q // OUT_W
    o_q = o_q % OUT_W
    if TRANSPOSED:
        o_p = o_p + PH
        o_q = o_q + PW
    else:
        o_p = o_p * SH - PH
        o_q = o_q * SW - PW
    # Row, column and channel of an element are sums of a part of the pixel's and a part of the tap's, so its address is
    # too; only a transposed stride, which divides their sum, has to multiply for each element.
    STRIDED: tl.constexpr = TRANSPOSED and (SH > 1 or SW > 1)
    p_x = x + o_b.to(tl.int64) * H * W * C
    if not STRIDED:
        p_x += (o_p.to(tl.int64) * W + o_q) * C
    # A pixel past the end sees padding only.
    o_p = tl.where(o_n < N, o_p, -(1 << 30))
    p_w = w + (o_m.to(tl.int64) * K)[:, None]
    m_w = (o_m < M)[:, None]
    for i_k in range(0, tl.cdiv(K, BLOCK_K)):
        # [BLOCK_K] taps and channels
        o_k = i_k * BLOCK_K + tl.arange(0, BLOCK_K)
        tap = o_k // C
        o_c = o_k % C
        dy = (tap // KW) * DH
        dx = (tap % KW) * DW
        if TRANSPOSED:
            dy = -dy
            dx = -dx
        # [BLOCK_N, BLOCK_K]
        o_y = o_p[:, None] + dy[None, :]
        o_x = o_q[:, None] + dx[None, :]
        m_x = (o_k < K)[None, :]
        if STRIDED:
            m_x = m_x & (o_y >= 0) & (o_x >= 0) & (o_y % SH == 0) & (o_x % SW == 0)
            o_y = o_y // SH
            o_x = o_x // SW
            o_in = (o_y * W + o_x) * C + o_c[None, :]
        else:
            o_in = ((dy * W + dx) * C + o_c)[None, :]
        m_x = m_x & within(o_y, H) & within(o_x, W)
        b_x = tl.load(p_x[:, None] + o_in, mask=m_x, other=0.0)
        # [BLOCK_M, BLOCK_K]
        b_w = tl.load(p_w + o_k[None, :], mask=m_w & (o_k < K)[None, :], other=0.0)
        # [BLOCK_M, BLOCK_N]
        acc = multiply(b_w, tl.trans(b_x), acc, PRECISION, WIDEN)
    return acc


@triton.jit
def pixel_offsets(o_m, o_n, M, PIXELS):
    """[BLOCK_M, BLOCK_N] offsets of channel m, pixel n in a contiguous [B, M, PIXELS]; n counts over the batch.

    PIXELS is an argument of its own, for a multiple of 16 makes the accesses 128 bits wide (180 x 180 is, 180 is not).
    """
    return ((o_n // PIXELS).to(tl.int64) * M * PIXELS + o_n % PIXELS)[None, :] + (o_m.to(tl.int64) * PIXELS)[:, None]


# ---- kernels --------------------------------------------------------------------------------------------------------


@triton.jit
def _pack_weight_kernel(
    weight, mask, packed, offset, size, rows, taps, inner, inner_padded, kw,
    stride_row, stride_inner, stride_h, stride_w, bit_row, bit_inner,
    MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """packed [rows, taps, inner_padded] = mu*weight, with zeros past `inner`.

    The mask is applied here, as the weight is read from its own layout, and not in the product, which reads a weight
    tile once per tile of pixels (254 times for the fuser): a sweep over one layer's weight, 4 to 8 bytes an element.
    """
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = o < size
    o_i = o % inner_padded
    tap = (o // inner_padded) % taps
    o_r = o // inner_padded // taps
    m_w = m & (o_i < inner)
    p_w = weight + o_r * stride_row + o_i * stride_inner + (tap // kw) * stride_h + (tap % kw) * stride_w
    b_w = tl.load(p_w, mask=m_w, other=0.0)
    if MASKED:
        o_bit = offset + o_r * bit_row + o_i * bit_inner + tap
        b_w = tl.where(bit(mask, tl.where(m_w, o_bit, -1)), b_w, 0.0)
    tl.store(packed + o, b_w, mask=m)


@triton.jit
def _channels_last_kernel(x, out, PIXELS, C, PADDED, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """out [B, PIXELS, PADDED] = x [B, C, PIXELS] transposed, with zeros past C.

    One program per tile of channels and pixels; the transposition goes through shared memory, so that both sides are
    128 bits wide. Each element is read once and written once.
    """
    tiles_c = tl.cdiv(PADDED, BLOCK_C)
    tiles_p = tl.cdiv(PIXELS, BLOCK_P)
    i_b = (tl.program_id(0) // (tiles_c * tiles_p)).to(tl.int64)
    o_c = (tl.program_id(0) % tiles_c) * BLOCK_C + tl.arange(0, BLOCK_C)
    o_p = (tl.program_id(0) // tiles_c % tiles_p) * BLOCK_P + tl.arange(0, BLOCK_P)
    # [BLOCK_C, BLOCK_P]
    p_x = x + (i_b * C + o_c)[:, None] * PIXELS + o_p[None, :]
    b_x = tl.load(p_x, mask=(o_c < C)[:, None] & (o_p < PIXELS)[None, :], other=0.0)
    # [BLOCK_P, BLOCK_C]
    p_out = out + (i_b * PIXELS + o_p)[:, None] * PADDED + o_c[None, :]
    tl.store(p_out, tl.trans(b_x), mask=(o_p < PIXELS)[:, None] & (o_c < PADDED)[None, :])


@triton.jit
def _wgrad_kernel(
    g, x, partials, M, N, PIXELS, M_PADDED, C, OUT_PIXELS, OUT_W, H, W, chunk,
    KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """partials [splits, M, N] = g^T x' over one chunk of pixels each; g [PIXELS, M_PADDED], N = taps*C, x as above.

    One program per (tile of channels out, tile of taps and channels in, chunk of pixels); tiles of one chunk are
    neighbours, so that they find its pixels in the cache. No atomics: `_finish_wgrad_kernel` sums the chunks in order.
    """
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles = tiles_m * tl.cdiv(N, BLOCK_N)
    i_s = tl.program_id(0) // tiles
    i_t = tl.program_id(0) % tiles
    o_m = (i_t % tiles_m) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = (i_t // tiles_m) * BLOCK_N + tl.arange(0, BLOCK_N)
    # [BLOCK_N] taps and channels
    tap = o_n // C
    dy = (tap // KW) * DH - PH
    dx = (tap % KW) * DW - PW
    o_tap = (dy * W + dx) * C + o_n % C
    acc = zeros(BLOCK_M, BLOCK_N, x.dtype.element_ty)
    end = tl.minimum((i_s + 1) * chunk, PIXELS)
    # [BLOCK_K] pixels, as digits: image (the offset of its first element), row, column. A step adds BLOCK_K to them
    # with carries; dividing anew would be a third of the loop's instructions.
    o_k = i_s * chunk + tl.arange(0, BLOCK_K)
    OUT_H = OUT_PIXELS // OUT_W
    image = tl.cast(H, tl.int64) * W * C
    o_b = (o_k // OUT_PIXELS).to(tl.int64) * image
    o_p = o_k // OUT_W % OUT_H
    o_q = o_k % OUT_W
    for start in range(i_s * chunk, end, BLOCK_K):
        o_k = start + tl.arange(0, BLOCK_K)
        m_k = o_k < end
        # [BLOCK_M, BLOCK_K]
        p_g = g + o_k.to(tl.int64)[None, :] * M_PADDED + o_m[:, None]
        b_g = tl.load(p_g, mask=m_k[None, :] & (o_m < M_PADDED)[:, None], other=0.0)
        # [BLOCK_K, BLOCK_N]
        o_y = (o_p * SH)[:, None] + dy[None, :]
        o_x = (o_q * SW)[:, None] + dx[None, :]
        m_x = m_k[:, None] & (o_n < N)[None, :] & within(o_y, H) & within(o_x, W)
        p_x = x + o_b + (o_p * SH * W + o_q * SW) * C
        b_x = tl.load(p_x[:, None] + o_tap[None, :], mask=m_x, other=0.0)
        # [BLOCK_M, BLOCK_N]
        acc = multiply(b_g, b_x, acc, PRECISION, WIDEN)
        o_q += BLOCK_K % OUT_W
        carry = o_q >= OUT_W
        o_q = tl.where(carry, o_q - OUT_W, o_q)
        o_p += BLOCK_K // OUT_W % OUT_H + carry.to(tl.int32)
        carry = o_p >= OUT_H
        o_p = tl.where(carry, o_p - OUT_H, o_p)
        o_b += (BLOCK_K // OUT_PIXELS + carry.to(tl.int32)).to(tl.int64) * image
    p_out = partials + (i_s.to(tl.int64) * M + o_m)[:, None] * N + o_n[None, :]
    tl.store(p_out, acc, mask=(o_m < M)[:, None] & (o_n < N)[None, :])


@triton.jit
def _finish_wgrad_kernel(
    partials, mask, grad, offset, size, splits, taps, inner, inner_padded, stride_split,
    MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad [rows, inner, taps] = mu * the sum of the partials [splits, rows, taps, inner_padded], first to last."""
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = o < size
    tap = o % taps
    o_i = (o // taps) % inner
    o_r = o // taps // inner
    p = partials + (o_r * taps + tap) * inner_padded + o_i
    b_sum = tl.load(p, mask=m, other=0.0)
    for _ in range(1, splits):
        p += stride_split
        b_sum += tl.load(p, mask=m, other=0.0)
    if MASKED:
        b_sum = tl.where(bit(mask, tl.where(m, offset + o, -1)), b_sum, 0.0)
    tl.store(grad + o, b_sum.to(grad.dtype.element_ty), mask=m)


# ---- launching ------------------------------------------------------------------------------------------------------

PACK_BLOCK, FINISH_BLOCK = 1024, 512  # 8 and 4 elements a thread: the latter sums as many at once in registers


def turn_block(itemsize: int) -> int:
    """Channels and pixels of a re-layout's tile: 128 bytes a row or more, 16 KB at most."""
    return 64 if itemsize < 8 else 32


def widen(dtype: torch.dtype) -> bool:
    """Whether operands are cast to float32 before they are multiplied: under the interpreter alone."""
    return triton.knobs.runtime.interpret and dtype in (torch.bfloat16, torch.float16)


def padded(channels: int) -> int:
    return triton.cdiv(channels, ALIGNED) * ALIGNED


def channels_last(x: Tensor) -> Tensor:
    """x [B, C, H, W] as a contiguous [B, H, W, C], C padded to `ALIGNED` with zeros; x's own memory if it is that."""
    batch, channels, height, width = x.shape
    check_count(batch * height * width, height * width * padded(channels))
    view = x.permute(0, 2, 3, 1)
    if channels % ALIGNED == 0 and view.is_contiguous():
        return view
    out = x.new_empty(batch, height, width, padded(channels))
    if out.numel():
        block = turn_block(x.element_size())
        tiles = triton.cdiv(padded(channels), block) * triton.cdiv(height * width, block)
        _channels_last_kernel[(batch * tiles,)](
            x.contiguous(), out, height * width, channels, padded(channels), BLOCK_C=block, BLOCK_P=block,
            num_warps=4, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    return out


def words(mask: Tensor) -> Tensor:
    """The bit-packed mask as int64 words, little-endian; its own memory unless that ends or starts within a word."""
    mask = mask.contiguous()
    if mask.numel() % 8 or mask.storage_offset() % 8 or mask.data_ptr() % 8:
        mask = torch.nn.functional.pad(mask, (0, -mask.numel() % 8)).clone()
    return mask.view(torch.int64)


def pixels(x: Tensor) -> int:
    """Of the whole batch [B, C, H, W]."""
    return x.shape[0] * x.shape[2] * x.shape[3]


def check_count(*counts: int) -> None:
    """Pixels (of a linear layer: rows) are counted in 32 bits, so are the elements of one image; offsets have 64."""
    if max(counts) >= 1 << 30:
        raise ValueError(
            f"{max(counts)} pixels in a batch or elements in an image: matrix kernels take up to {1 << 30}"
        )


def pack_weight(weight: Tensor, bits: Tensor | None, offset: int, transposed: bool) -> Tensor:
    """mu*weight [O, I, kh, kw] of any strides as [O, kh*kw, I padded], or transposed as [I, kh*kw, O padded].

    Strides are arguments, for one input's half of a fused weight is a view: the packing reads it where it lies.
    """
    of_out, of_in, kh, kw = weight.shape
    strides, bit_strides = weight.stride()[:2], (of_in * kh * kw, kh * kw)
    rows, inner = (of_in, of_out) if transposed else (of_out, of_in)
    if transposed:
        strides, bit_strides = strides[::-1], bit_strides[::-1]
    packed = weight.new_empty(rows, kh * kw, padded(inner))
    if packed.numel() == 0:
        return packed
    _pack_weight_kernel[(triton.cdiv(packed.numel(), PACK_BLOCK),)](
        weight, weight if bits is None else bits, packed, offset, packed.numel(), rows, kh * kw, inner, padded(inner),
        kw, *strides, *weight.stride()[2:], *bit_strides, MASKED=bits is not None, BLOCK=PACK_BLOCK,
        num_warps=4, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return packed


def geometry(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> dict[str, int]:
    """A convolution's geometry as the kernels' constexpr arguments: a network has a dozen, each compiled once."""
    named = zip(("S", "P", "D"), (stride, padding, dilation), strict=True)
    return {"KW": kernel[1]} | {f"{name}{axis}": v for name, pair in named for axis, v in zip("HW", pair, strict=True)}


def splits(rows: int, columns: int, depth: int, block: Tile) -> tuple[int, int]:
    """(how many chunks the sum is cut into, a chunk's length).

    From the shape alone, so that the rounding does not depend on how many SMs a GPU has; a chunk is 8 blocks or more.
    """
    tiles = triton.cdiv(rows, block.rows) * triton.cdiv(columns, block.columns)
    wanted = min(max(PROGRAMS // max(tiles, 1), 1), MAX_SPLITS, max(depth // (8 * block.depth), 1))
    chunk = triton.cdiv(triton.cdiv(depth, wanted), block.depth) * block.depth
    return triton.cdiv(depth, chunk), chunk


def wgrad(
    g: Tensor,
    x: Tensor,
    out_width: int,
    out_pixels: int,
    shape: Sequence[int],
    bits: Tensor | None,
    offset: int,
    constants: Mapping[str, int],
    precision: str = "ieee",
) -> Tensor:
    """mu * dL/dweight [O, I, kh, kw] from g [pixels, O padded or not] and x [B, H, W, I padded or not]."""
    of_out, of_in, kh, kw = shape
    grad = x.new_empty(of_out, of_in, kh, kw)
    if grad.numel() == 0 or x.numel() == 0 or g.numel() == 0:
        return grad.zero_()
    pixels, columns = g.shape[0], kh * kw * x.shape[3]
    block = tile_for("wgrad", x, of_out, precision)
    count, chunk = splits(of_out, columns, pixels, block)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    partials = x.new_empty(count, of_out, columns, dtype=wide)
    grid = (triton.cdiv(of_out, block.rows) * triton.cdiv(columns, block.columns) * count,)
    _wgrad_kernel[grid](
        g, x, partials, of_out, columns, pixels, g.shape[1], x.shape[3], out_pixels, out_width, *x.shape[1:3], chunk,
        **constants, **block.blocks(), PRECISION=precision, WIDEN=widen(x.dtype), **block.options(),
    )  # fmt: skip
    _finish_wgrad_kernel[(triton.cdiv(grad.numel(), FINISH_BLOCK),)](
        partials, grad if bits is None else bits, grad, offset, grad.numel(), count, kh * kw, of_in, x.shape[3],
        of_out * columns, MASKED=bits is not None, BLOCK=FINISH_BLOCK, num_warps=4, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return grad


# ---- what is compiled ahead of time ---------------------------------------------------------------------------------

Budgets = dict[tuple[str, str], tuple[int, int]]  # (dtype, arch class) -> (registers, shared memory)
TYPES = {"bf16": "half", "fp16": "half", "fp32": "float32", "tf32": "tf32", "fp64": "float64"}
ACCUMULATES = {"bf16": "fp32", "fp16": "fp32", "fp32": "fp32", "fp64": "fp64"}
# The fuser's convolution, 3 x 3 with padding 1.
SAME_3X3 = {"KW": 3, "SH": 1, "SW": 1, "PH": 1, "PW": 1, "DH": 1, "DW": 1}
POINTWISE = {"KW": 1, "SH": 1, "SW": 1, "PH": 0, "PW": 0, "DH": 1, "DW": 1}


def archs_of(name: str) -> tuple[int, ...]:
    return tuple(arch for arch in ARCHS if ARCH_CLASSES[arch] == name)


def signature(kernel: Any, pointers: Mapping[str, str], constants: Mapping[str, Any]) -> dict[str, str]:
    """Triton types of a kernel's arguments: the pointers', "constexpr" for constants, i32 for the rest."""
    given = {name: f"*{dtype}" for name, dtype in pointers.items()} | dict.fromkeys(constants, "constexpr")
    return {name: given.get(name, "i32") for name in kernel.arg_names}


def matrix_forms(
    op: str,
    form: str,
    kernel: Any,
    kind: str,
    pointers: Mapping[str, str | None],
    constants: Mapping[str, Any],
    divisible: Sequence[str],
    budgets: Budgets,
    rows: int = 256,
    wide: bool = True,
) -> list[Specialisation]:
    """A matrix kernel's specialisations, with the table's tiles.

    pointers   argument -> triton type, None for the operands' own
    divisible  sizes that are multiples of 16 where a network's channels and pixels are
    budgets    (dtype, arch class) -> (registers, bytes of shared memory); "tf32" is fp32 on tensor cores, the arch
               class "any" a tile that all share. float64 has matrix instructions on some GPUs only (DMMA)
    """
    found = []
    for (dtype, arch), (registers, shared) in budgets.items():
        kept_type = "fp32" if dtype == "tf32" else dtype
        block = tile(kind, SMALL if arch == "any" else arch, TYPES[dtype], rows)
        of_kernel = dict(constants) | block.blocks()
        of_kernel |= {"PRECISION": "tf32" if dtype == "tf32" else "ieee", "WIDEN": False}
        types = {name: fixed or kept_type for name, fixed in pointers.items()}
        types = {name: ACCUMULATES[kept_type] if fixed == "accumulator" else fixed for name, fixed in types.items()}
        found.append(
            Specialisation(
                op,
                f"{dtype}, {form}" if form else dtype,
                kernel,
                signature(kernel, types, of_kernel),
                of_kernel,
                Budget(registers, shared, wide=wide, matrix=dtype not in ("fp32", "fp64")),
                divisible=(*pointers, *divisible),
                num_warps=block.num_warps,
                num_stages=block.num_stages,
                archs=ARCHS if arch == "any" else archs_of(arch),
                options={"enable_fp_fusion": True},
            )
        )
    return found


def sweep_form(
    op: str,
    form: str,
    kernel: Any,
    pointers: Mapping[str, str],
    constants: Mapping[str, Any],
    divisible: Sequence[str],
    registers: int,
    **facts: Any,
) -> Specialisation:
    """A specialisation of a kernel without a matrix product; facts: further fields, the budget's `wide`, `shared`."""
    budget = Budget(registers, facts.pop("shared", 0), wide=facts.pop("wide", True))
    types = signature(kernel, pointers, constants)
    aligned = (*pointers, *divisible)
    return Specialisation(op, form, kernel, types, constants, budget, divisible=aligned, **facts)


_PLAIN: dict[str, Any] = {"num_warps": 4, "num_stages": 1, "options": {"enable_fp_fusion": True}}
_SIZE = {"bf16": 2, "fp32": 4, "fp64": 8}


def _operand_forms(dtype: str, pack: int, turn: int, finish: int) -> list[Specialisation]:
    """The sweeps beside the products and their registers. Packing and finishing gather: a weight's taps are strided."""
    size = _SIZE[dtype]
    block = turn_block(size)
    return [
        sweep_form(
            "masked_conv2d", f"{dtype}, weight packed", _pack_weight_kernel,
            {"weight": dtype, "mask": "i64", "packed": dtype}, {"MASKED": True, "BLOCK": PACK_BLOCK},
            ("size", "inner_padded"), pack, wide=False, **_PLAIN,
        ),
        sweep_form(
            "masked_conv2d", f"{dtype}, channels last", _channels_last_kernel, {"x": dtype, "out": dtype},
            {"BLOCK_C": block, "BLOCK_P": block}, ("PIXELS", "C", "PADDED"), turn,
            shared=block * block * size, minimum=2 * size, moved=2 * size,
            in_flight=block * block * size // 128, **_PLAIN,
        ),
        sweep_form(
            "masked_conv2d_wgrad", f"{dtype}, partials summed", _finish_wgrad_kernel,
            {"partials": ACCUMULATES[dtype], "mask": "i64", "grad": dtype}, {"MASKED": True, "BLOCK": FINISH_BLOCK},
            ("size", "inner_padded", "stride_split"), finish, wide=False, **_PLAIN,
        ),
    ]  # fmt: skip


_REGISTERS = {"bf16": (56, 40, 64), "fp32": (56, 48, 64), "fp64": (80, 40, 72)}

SPECIALISATIONS = [form for dtype, registers in _REGISTERS.items() for form in _operand_forms(dtype, *registers)]
