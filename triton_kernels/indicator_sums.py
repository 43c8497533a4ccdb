"""sum |theta*grad| and, per reactivation stage s, sum |theta*(start_s - end_s)|: the normalisers of eq. 11-13.

One pass over 2 + 2S arrays, each element read once (fp32, two stages: 24 bytes), nothing materialised. Every item of
the sweep leaves one float64 partial per sum; a second launch, one program a sum, adds them in order. Neither the number
of programs nor their order changes a bit; where the slice begins within 16 bytes does, for it moves the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastalter.triton_kernels import common
from fastalter.triton_kernels.budget import Budget, Specialisation
from fastalter.triton_kernels.common import edge_offsets, load

CHUNK = 1024  # partials that the ordered sum adds at once


@triton.jit
def _sum_item(theta, grad, start, end, partial, partials, offs, valid, S: tl.constexpr, MASKED: tl.constexpr):
    # [BLOCK] or [EDGE]
    b_g = load(grad + offs, valid, MASKED)
    b_w = load(theta + offs, valid, MASKED).to(b_g.dtype)
    tl.store(partial, tl.sum(tl.abs(b_w * b_g).to(tl.float64)))
    for s in tl.static_range(S):
        b_change = load(start[s] + offs, valid, MASKED) - load(end[s] + offs, valid, MASKED)
        tl.store(partial + (1 + s) * partials, tl.sum(tl.abs(b_w * b_change).to(tl.float64)))


@triton.jit(do_not_specialize=["full", "partials", "lead", "size"])
def _indicator_sums_kernel(
    theta,
    grad,
    start,  # S pointers
    end,  # S pointers
    partial,  # float64 [1 + S, partials]
    full: tl.int64,
    partials: tl.int64,
    lead: tl.int64,
    size: tl.int64,
    S: tl.constexpr,
    BLOCK: tl.constexpr,
    EDGE: tl.constexpr,
):
    for i in range(tl.program_id(0).to(tl.int64), partials, tl.num_programs(0)):
        if i < full:
            offs = common.HEAD + i * BLOCK + tl.arange(0, BLOCK)
            _sum_item(theta, grad, start, end, partial + i, partials, offs, offs >= 0, S, False)
        else:
            edge = edge_offsets(i - full, full, BLOCK, EDGE)
            valid = (edge >= lead) & (edge < size)
            _sum_item(theta, grad, start, end, partial + i, partials, edge, valid, S, True)


@triton.jit(do_not_specialize=["partials"])
def _ordered_sum_kernel(partial, sums, partials: tl.int64, CHUNK: tl.constexpr):
    i_s = tl.program_id(0).to(tl.int64)
    b_sum = tl.zeros([CHUNK], tl.float64)
    for i in range(0, partials, CHUNK):
        offs = i + tl.arange(0, CHUNK)
        b_sum += tl.load(partial + i_s * partials + offs, mask=offs < partials, other=0.0)
    tl.store(sums + i_s, tl.sum(b_sum))


def launch_indicator_sums(theta: Tensor, grad: Tensor, start: Sequence[Tensor], end: Sequence[Tensor]) -> Tensor:
    stages = len(start)
    if grad.numel() == 0:
        return torch.zeros(1 + stages, dtype=torch.float64, device=grad.device)
    (theta, grad, *ends), lead = common.aligned([theta, grad, *start, *end])
    shape = common.sweep("indicator_sums", grad)
    block = common.block_of(shape, grad.dtype)
    full, edges = common.items(grad.numel(), block, shape.edge)
    partial = torch.empty((1 + stages, full + edges), dtype=torch.float64, device=grad.device)
    sums = torch.empty(1 + stages, dtype=torch.float64, device=grad.device)
    with common.device_of(grad):
        _indicator_sums_kernel[common.programs(shape, full + edges, grad)](
            *(theta, grad, tuple(ends[:stages]), tuple(ends[stages:]), partial),
            *(full, full + edges, lead, grad.numel(), stages, block, shape.edge),
            **shape.options(),
        )
        _ordered_sum_kernel[(1 + stages,)](partial, sums, full + edges, CHUNK, num_warps=4, **common.OPTIONS)
    return sums


def _specialisation(theta: torch.dtype, grad: torch.dtype, stages: int) -> Specialisation:
    shape = common.SWEEPS["hbm"]["indicator_sums"]
    block = common.block_of(shape, grad)
    t, g = f"*{common.TYPES[theta]}", f"*{common.TYPES[grad]}"
    moved = theta.itemsize + (1 + 2 * stages) * grad.itemsize
    return Specialisation(
        op="indicator_sums",
        form=f"theta {t[1:]}, gradients {g[1:]}, {stages} stages",
        kernel=_indicator_sums_kernel,
        signature={"theta": t, "grad": g, "start": (g,) * stages, "end": (g,) * stages, "partial": "*fp64"}
        | dict.fromkeys(("full", "partials", "lead", "size"), "i64")
        | dict.fromkeys(("S", "BLOCK", "EDGE"), "constexpr"),
        constants={"S": stages, "BLOCK": block, "EDGE": shape.edge},
        budget=Budget(registers=shape.registers, shared=32),
        divisible=("theta", "grad", "start", "end", "partial"),
        num_warps=shape.warps,
        minimum=moved,
        moved=moved,
        in_flight=(theta.itemsize + grad.itemsize) * block // (32 * shape.warps),
        options=shape.options(),
    )


SPECIALISATIONS = [
    _specialisation(torch.float32, torch.float32, 0),
    _specialisation(torch.float32, torch.float32, 2),
    _specialisation(torch.bfloat16, torch.float32, 2),
    _specialisation(torch.float64, torch.float64, 2),
    Specialisation(
        op="indicator_sums",
        form="ordered sum",
        kernel=_ordered_sum_kernel,
        signature={"partial": "*fp64", "sums": "*fp64", "partials": "i64", "CHUNK": "constexpr"},
        constants={"CHUNK": CHUNK},
        budget=Budget(registers=40, shared=32, wide=False),
        divisible=("partial", "sums"),
        num_warps=4,
        options=common.OPTIONS,
    ),
]
