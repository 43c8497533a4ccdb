"""Sums of theta*grad over channel groups: dL/dm for a gate m on a group's channels.

One program a group, which goes through its members, and through a member's elements, in order: deterministic without a
second launch, and no program waits for another. Elements are gathered (an input channel of a conv lies in pieces of
kh*kw), two arrays read once; a program per group fills a GPU from a few hundred channels on.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastalter.triton_kernels import common
from fastalter.triton_kernels.budget import Budget, Specialisation

BLOCK = 512
INTERPRETED_BLOCK = 64


@triton.jit
def _channel_sum_kernel(
    theta,
    grad,
    members,  # int64 [R, 4]: start, outer, step, inner
    groups,  # int64 [G + 1]
    sums,  # float64 [G]
    BLOCK: tl.constexpr,
):
    i_g = tl.program_id(0).to(tl.int64)
    b_sum = tl.zeros([BLOCK], tl.float64)
    for m in range(tl.load(groups + i_g), tl.load(groups + i_g + 1)):
        p_m = members + 4 * m
        start, outer, step, inner = tl.load(p_m), tl.load(p_m + 1), tl.load(p_m + 2), tl.load(p_m + 3)
        for j in range(0, outer * inner, BLOCK):
            offs = j + tl.arange(0, BLOCK)
            valid = offs < outer * inner
            at = start + offs // inner * step + offs % inner
            # [BLOCK]
            b_g = tl.load(grad + at, mask=valid, other=0.0)
            b_w = tl.load(theta + at, mask=valid, other=0.0).to(b_g.dtype)
            b_sum += (b_w * b_g).to(tl.float64)
    tl.store(sums + i_g, tl.sum(b_sum))


def launch_channel_sum(theta: Tensor, grad: Tensor, members: Tensor, groups: Tensor) -> Tensor:
    sums = torch.empty(groups.numel() - 1, dtype=torch.float64, device=grad.device)
    if sums.numel():
        block = BLOCK if grad.is_cuda else INTERPRETED_BLOCK
        with common.device_of(grad):
            _channel_sum_kernel[(sums.numel(),)](
                theta, grad, members, groups, sums, block, num_warps=4, **common.OPTIONS
            )
    return sums


def _specialisation(theta: torch.dtype, grad: torch.dtype) -> Specialisation:
    t, g = common.TYPES[theta], common.TYPES[grad]
    return Specialisation(
        op="channel_sum",
        form=f"theta {t}, gradients {g}",
        kernel=_channel_sum_kernel,
        signature={"theta": f"*{t}", "grad": f"*{g}", "members": "*i64", "groups": "*i64"}
        | {"sums": "*fp64", "BLOCK": "constexpr"},
        constants={"BLOCK": BLOCK},
        budget=Budget(registers=48, shared=32, wide=False),
        divisible=("theta", "grad", "members", "groups", "sums"),
        num_warps=4,
        options=common.OPTIONS,
    )


SPECIALISATIONS = [
    _specialisation(torch.float32, torch.float32),
    _specialisation(torch.bfloat16, torch.float32),
    _specialisation(torch.float64, torch.float64),
]
