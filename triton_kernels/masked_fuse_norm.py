"""Batch norm's affine step and ReLU for the three mask states at once, its backward, and the products' full gradient.

All three kernels are one sweep over rows of contiguous pixels, one channel of one image each: memory-bound, 128 bits an
access. Fused multiply-add is off, so that the sign before the ReLU is the reference's to the last bit and forward and
backward agree on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastalter.triton_kernels import common, gemm
from fastalter.triton_kernels.budget import Specialisation

# Elements of a row that a program takes, and its warps. The fuser's rows of 32 400 are 16 programs, 4096 in all.
# Forward: 16 elements a thread and 64 bytes in flight, so that the six scalars a program needs are the smaller part of
# its loads. Backward: it reads five tensors at once, so 8 elements a thread do.
BLOCK = 2048
OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}
OPTIONS_BACKWARD = {"num_warps": 8, "num_stages": 1, "enable_fp_fusion": False}


@triton.jit
def _row(BLOCK: tl.constexpr, PIXELS, M):
    """(channel, offsets of this program's pixels, whether they are in the row), rows of [B, M, PIXELS] in order."""
    chunks = tl.cdiv(PIXELS, BLOCK)
    i_r = tl.program_id(0) // chunks
    o_p = (tl.program_id(0) % chunks) * BLOCK + tl.arange(0, BLOCK)
    return i_r % M, i_r.to(tl.int64) * PIXELS + o_p, o_p < PIXELS


@triton.jit
def _load(p, m, WIDE: tl.constexpr):
    return tl.load(p, mask=m, other=0.0).to(WIDE)


@triton.jit
def _affine(p, scale, shift, i_m, WIDE: tl.constexpr):
    return tl.load(scale + i_m).to(WIDE) * p + tl.load(shift + i_m).to(WIDE)


@triton.jit
def _finish(y, m, b_p, scale, shift, i_m, RELU: tl.constexpr, WIDE: tl.constexpr):
    b_y = _affine(b_p, scale, shift, i_m, WIDE)
    if RELU:
        b_y = tl.maximum(b_y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y, b_y.to(y.dtype.element_ty), mask=m)


@triton.jit
def _masked_fuse_norm_kernel(
    first, second, scale_both, scale_first, scale_second, shift_both, shift_first, shift_second,
    y_both, y_first, y_second, M, PIXELS,
    SECOND: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y_v = scale_v*P_v + shift_v and its ReLU; P_both = P_first + P_second. Without SECOND only y_first.

    Reads both products once and writes three outputs: 5 elements a pixel, 10 bytes in half precision, where a sum and
    three norms move 9 elements. scale_v, shift_v are float64 [M], cast to the arithmetic's dtype.
    """
    WIDE: tl.constexpr = tl.float64 if first.dtype.element_ty == tl.float64 else tl.float32
    i_m, o, m = _row(BLOCK, PIXELS, M)
    # [BLOCK]
    b_first = _load(first + o, m, WIDE)
    if SECOND:
        b_second = _load(second + o, m, WIDE)
        _finish(y_both + o, m, b_first + b_second, scale_both, shift_both, i_m, RELU, WIDE)
        _finish(y_second + o, m, b_second, scale_second, shift_second, i_m, RELU, WIDE)
    _finish(y_first + o, m, b_first, scale_first, shift_first, i_m, RELU, WIDE)


@triton.jit
def _state(grad, o, m, i_m, b_p, scale, shift, partials, i_out, step, RELU: tl.constexpr, WIDE: tl.constexpr):
    """One state's share of its products' gradient, [BLOCK]; stores the partials of dscale and dshift."""
    b_g = _load(grad + o, m, WIDE)
    b_scale = tl.load(scale + i_m).to(WIDE)
    if RELU:
        b_g = tl.where(b_scale * b_p + tl.load(shift + i_m).to(WIDE) > 0, b_g, 0.0)
    tl.store(partials + i_out, tl.sum(b_g * b_p, 0))
    tl.store(partials + 3 * step + i_out, tl.sum(b_g, 0))
    return b_scale * b_g


@triton.jit
def _masked_fuse_norm_backward_kernel(
    grad_both, grad_first, grad_second, first, second,
    scale_both, scale_first, scale_second, shift_both, shift_first, shift_second,
    dp_first, dp_second, partials, M, PIXELS, BATCH,
    BOTH: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dP_first, dP_second and a block's partials of dscale, dshift, for the states that have a gradient.

    Reads the gradients given and the products once and writes the products' gradients: 7 elements a pixel when all
    are there. A state without gradient (BOTH, FIRST, SECOND) is not compiled in, nor a product that no state uses.
    partials [6, M, B*chunks]: sum g*P of each state, then sum g; their sums over the last dimension are dscale, dshift.
    """
    WIDE: tl.constexpr = tl.float64 if first.dtype.element_ty == tl.float64 else tl.float32
    i_m, o, m = _row(BLOCK, PIXELS, M)
    chunks = tl.cdiv(PIXELS, BLOCK)
    i_r = tl.program_id(0) // chunks
    step = tl.cast(M, tl.int64) * BATCH * chunks
    i_out = (i_m.to(tl.int64) * BATCH + i_r // M) * chunks + tl.program_id(0) % chunks
    # [BLOCK]
    b_first = tl.zeros([BLOCK], WIDE)
    b_second = tl.zeros([BLOCK], WIDE)
    b_dfirst = tl.zeros([BLOCK], WIDE)
    b_dsecond = tl.zeros([BLOCK], WIDE)
    if BOTH or FIRST:
        b_first = _load(first + o, m, WIDE)
    if BOTH or SECOND:
        b_second = _load(second + o, m, WIDE)
    if BOTH:
        b_d = _state(
            grad_both, o, m, i_m, b_first + b_second, scale_both, shift_both, partials, i_out, step, RELU, WIDE
        )
        b_dfirst += b_d
        b_dsecond += b_d
    if FIRST:
        b_dfirst += _state(
            grad_first, o, m, i_m, b_first, scale_first, shift_first, partials, step + i_out, step, RELU, WIDE
        )
    if SECOND:
        b_dsecond += _state(
            grad_second, o, m, i_m, b_second, scale_second, shift_second, partials, 2 * step + i_out, step, RELU, WIDE
        )
    if BOTH or FIRST:
        tl.store(dp_first + o, b_dfirst.to(dp_first.dtype.element_ty), mask=m)
    if BOTH or SECOND:
        tl.store(dp_second + o, b_dsecond.to(dp_second.dtype.element_ty), mask=m)


@triton.jit
def _masked_fuse_grad_kernel(
    grad, grad_sums, grad_cross, p, other, out, M, PIXELS,
    GRAD: tl.constexpr, SUMS: tl.constexpr, CROSS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = grad + grad_sums[0] + 2 P grad_sums[1] + P_other grad_cross, each term if it is there.

    At most 4 elements a pixel: three read, one written. grad_sums is float64 [2, M], grad_cross float64 [M].
    """
    WIDE: tl.constexpr = tl.float64 if p.dtype.element_ty == tl.float64 else tl.float32
    i_m, o, m = _row(BLOCK, PIXELS, M)
    # [BLOCK]
    b_out = tl.zeros([BLOCK], WIDE)
    if GRAD:
        b_out += _load(grad + o, m, WIDE)
    if SUMS:
        b_out += tl.load(grad_sums + i_m).to(WIDE)
        b_out += _load(p + o, m, WIDE) * (2 * tl.load(grad_sums + M + i_m)).to(WIDE)
    if CROSS:
        b_out += _load(other + o, m, WIDE) * tl.load(grad_cross + i_m).to(WIDE)
    tl.store(out + o, b_out.to(out.dtype.element_ty), mask=m)


def _grid(p: Tensor) -> tuple[int, int, tuple[int]]:
    """(channels, pixels of a row, grid) of a [B, channels, H, W]."""
    pixels = p.shape[2] * p.shape[3]
    return p.shape[1], pixels, (p.shape[0] * p.shape[1] * triton.cdiv(pixels, BLOCK),)


def launch_masked_fuse_norm(
    p_first: Tensor, p_second: Tensor | None, scale: Sequence[Tensor], shift: Sequence[Tensor], relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """scale_v*P_v + shift_v and, if asked for, its ReLU, for the states both, first only, second only.

    Without a second product only the state of the first is there.
    """
    first = p_first.contiguous()
    second = first if p_second is None else p_second.contiguous()
    there = (p_second is not None, True, p_second is not None)
    both, only_first, only_second = (torch.empty_like(first) if has else first.new_empty(0) for has in there)
    if first.numel():
        with common.device_of(first):
            channels, pixels, grid = _grid(first)
            _masked_fuse_norm_kernel[grid](
                first, second, *(row.contiguous() for row in (*scale, *shift)), both, only_first, only_second,
                channels, pixels, SECOND=p_second is not None, RELU=relu, BLOCK=BLOCK, **OPTIONS,
            )  # fmt: skip
    return both, only_first, only_second


def launch_masked_fuse_norm_backward(
    grad_both: Tensor | None,
    grad_first: Tensor | None,
    grad_second: Tensor | None,
    p_first: Tensor,
    p_second: Tensor | None,
    scale: Sequence[Tensor],
    shift: Sequence[Tensor],
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dP_first, dP_second, dscale [3, O], dshift [3, O]); a product that no given state uses gets an empty [0]."""
    first = p_first.contiguous()
    second = first if p_second is None else p_second.contiguous()
    there = (p_second is not None, True, p_second is not None)
    grads = [
        grad.contiguous() if has and grad is not None else None
        for has, grad in zip(there, (grad_both, grad_first, grad_second), strict=True)
    ]
    given = [grad is not None for grad in grads]
    used = (given[0] or given[1], given[0] or given[2])
    dp_first, dp_second = (torch.empty_like(first) if use else first.new_empty(0) for use in used)
    channels, pixels, grid = _grid(first)
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    blocks = grid[0] // max(channels, 1)
    partials = first.new_empty(6, channels, blocks, dtype=wide)
    if first.numel() and any(given):
        with common.device_of(first):
            _masked_fuse_norm_backward_kernel[grid](
                *(first if grad is None else grad for grad in grads), first, second,
                *(row.contiguous() for row in (*scale, *shift)), dp_first, dp_second, partials,
                channels, pixels, first.shape[0], BOTH=given[0], FIRST=given[1], SECOND=given[2], RELU=relu,
                BLOCK=BLOCK, **OPTIONS_BACKWARD,
            )  # fmt: skip
    tables = first.new_zeros(6, channels, dtype=torch.float64)
    for state, has in enumerate(given):
        if has:
            tables[state], tables[3 + state] = partials[[state, 3 + state]].sum(-1, dtype=torch.float64)
    return dp_first, dp_second, tables[:3].clone(), tables[3:].clone()


def launch_masked_fuse_grad(
    grad: Tensor | None, grad_sums: Tensor | None, grad_cross: Tensor | None, p: Tensor, other: Tensor | None
) -> Tensor:
    """dL/dP of one product in full; None counts as 0. grad may be expanded, as the gradient of a sum is."""
    p = p.contiguous()
    cross = grad_cross is not None and other is not None
    other = p if other is None else other.contiguous()
    out = torch.empty_like(p)
    if p.numel():
        with common.device_of(p):
            channels, pixels, grid = _grid(p)
            _masked_fuse_grad_kernel[grid](
                *(p if table is None else table.contiguous() for table in (grad, grad_sums, grad_cross)), p, other, out,
                channels, pixels, GRAD=grad is not None, SUMS=grad_sums is not None, CROSS=cross,
                BLOCK=BLOCK, **OPTIONS,
            )  # fmt: skip
    return out


_TABLES = {f"{table}_{state}": "fp64" for table in ("scale", "shift") for state in ("both", "first", "second")}
_OUTPUTS = ("y_both", "y_first", "y_second")
_GRADS = ("grad_both", "grad_first", "grad_second")
_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}


def _options(launched: dict[str, Any]) -> dict[str, Any]:
    """The launch options as fields of a Specialisation."""
    return {name: launched[name] for name in ("num_warps", "num_stages")} | {
        "options": {"enable_fp_fusion": launched["enable_fp_fusion"]}
    }


def _forms(dtype: str, norm: int, backward: int, grad: int) -> list[Specialisation]:
    """The three kernels for one dtype with their register budgets."""
    size, wide = _BYTES[dtype], gemm.ACCUMULATES[dtype]
    products = dict.fromkeys(("first", "second"), dtype)
    states = {"BOTH": True, "FIRST": True, "SECOND": True, "RELU": True, "BLOCK": BLOCK}
    return [
        gemm.sweep_form(
            "masked_fuse_norm", dtype, _masked_fuse_norm_kernel,
            {**products, **_TABLES, **dict.fromkeys(_OUTPUTS, dtype)}, {"SECOND": True, "RELU": True, "BLOCK": BLOCK},
            ("PIXELS",), norm, minimum=5 * size, moved=5 * size, in_flight=2 * size * BLOCK // 128, **_options(OPTIONS),
        ),
        gemm.sweep_form(
            "masked_fuse_norm_backward", dtype, _masked_fuse_norm_backward_kernel,
            {**dict.fromkeys(_GRADS, dtype), **products, **_TABLES, **dict.fromkeys(("dp_first", "dp_second"), dtype),
             "partials": wide}, states, ("PIXELS",), backward,
            minimum=7 * size, moved=7 * size, in_flight=5 * size * BLOCK // 256, shared=64,
            **_options(OPTIONS_BACKWARD),
        ),
        gemm.sweep_form(
            "masked_fuse_grad", dtype, _masked_fuse_grad_kernel,
            {"grad": dtype, "grad_sums": "fp64", "grad_cross": "fp64", "p": dtype, "other": dtype, "out": dtype},
            {"GRAD": True, "SUMS": True, "CROSS": True, "BLOCK": BLOCK}, ("PIXELS",), grad,
            minimum=4 * size, moved=4 * size, in_flight=3 * size * BLOCK // 128, **_options(OPTIONS),
        ),
    ]  # fmt: skip


_REGISTERS = {"bf16": (48, 48, 40), "fp16": (48, 48, 40), "fp32": (56, 48, 56), "fp64": (120, 96, 72)}

SPECIALISATIONS = [form for dtype, registers in _REGISTERS.items() for form in _forms(dtype, *registers)]
