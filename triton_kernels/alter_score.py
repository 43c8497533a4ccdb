"""The AlterEva score S (eq. 11-13), on request DeCI and ReRI, and the histogram of the scores' top 16 key bits.

One pass: 2 + 2S arrays read, 1 to 3 written (fp32, two stages: 28 bytes an element). The arithmetic has the reference's
order and rounds every product (no fused multiply-add), so the results are the reference's bit for bit, in float32 and
float64. The histogram is counted in the same sweep by integer atomics into COPIES private copies, which are then added
up: see `add_counts` and COPIES in common.py for what is done about contention. Integer sums know no order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastalter.triton_kernels import common
from fastalter.triton_kernels.budget import Budget, Specialisation
from fastalter.triton_kernels.common import add_top_digits, edge_offsets, load, store


@triton.jit
def _score_item(
    score,
    histogram,
    theta,
    grad,
    start,
    end,
    weights,
    deci,
    reri,
    offs,
    valid,
    S: tl.constexpr,
    COPIES: tl.constexpr,
    MASKED: tl.constexpr,
):
    # [BLOCK] or [EDGE]
    b_g = load(grad + offs, valid, MASKED)
    b_w = load(theta + offs, valid, MASKED).to(b_g.dtype)
    b_d = tl.load(weights + 2) * tl.abs(b_w * b_g)
    b_r = tl.zeros_like(b_d)
    for s in tl.static_range(S):
        b_change = load(start[s] + offs, valid, MASKED) - load(end[s] + offs, valid, MASKED)
        b_r = b_r + tl.load(weights + 3 + s) * tl.abs(b_w * b_change)
    b_s = tl.load(weights) * b_d - tl.load(weights + 1) * b_r
    store(score + offs, b_s, valid, MASKED)
    if deci is not None:
        store(deci + offs, b_d, valid, MASKED)
    if reri is not None:
        store(reri + offs, b_r, valid, MASKED)
    add_top_digits(histogram, b_s, valid, COPIES)


@triton.jit(do_not_specialize=["full", "items", "lead", "size"])
def _alter_score_kernel(
    score,
    histogram,  # int64 [COPIES, BINS]
    theta,
    grad,
    start,  # S pointers
    end,  # S pointers
    weights,  # [3 + S]: alpha, beta, the weight of DeCI, those of ReRI
    deci,  # or None
    reri,  # or None
    full: tl.int64,
    items: tl.int64,
    lead: tl.int64,
    size: tl.int64,
    S: tl.constexpr,
    COPIES: tl.constexpr,
    BLOCK: tl.constexpr,
    EDGE: tl.constexpr,
):
    for i in range(tl.program_id(0).to(tl.int64), items, tl.num_programs(0)):
        if i < full:
            offs = common.HEAD + i * BLOCK + tl.arange(0, BLOCK)
            _score_item(
                score, histogram, theta, grad, start, end, weights, deci, reri, offs, offs >= 0, S, COPIES, False
            )
        else:
            edge = edge_offsets(i - full, full, BLOCK, EDGE)
            valid = (edge >= lead) & (edge < size)
            _score_item(score, histogram, theta, grad, start, end, weights, deci, reri, edge, valid, S, COPIES, True)


def launch_alter_score(
    score: Tensor,
    histogram: Tensor,
    theta: Tensor,
    grad: Tensor,
    start: Sequence[Tensor],
    end: Sequence[Tensor],
    alpha: float,
    beta: float,
    deci_weight: float,
    reri_weights: Sequence[float],
    deci: Tensor | None = None,
    reri: Tensor | None = None,
) -> None:
    if grad.numel() == 0:
        return
    stages = len(start)
    weights = torch.tensor([alpha, beta, deci_weight, *reri_weights], dtype=grad.dtype, device=grad.device)
    optional = [arena for arena in (deci, reri) if arena is not None]
    (score, theta, grad, *rest), lead = common.aligned([score, theta, grad, *start, *end, *optional])
    start, end, optional = rest[:stages], rest[stages : 2 * stages], rest[2 * stages :]
    deci, reri = (None if arena is None else optional.pop(0) for arena in (deci, reri))
    shape = common.sweep("alter_score", grad)
    block = common.block_of(shape, grad.dtype)
    full, edges = common.items(grad.numel(), block, shape.edge)
    copies = torch.zeros((common.COPIES, common.BINS.value), dtype=torch.int64, device=grad.device)
    with common.device_of(grad):
        _alter_score_kernel[common.programs(shape, full + edges, grad)](
            *(score, copies, theta, grad, tuple(start), tuple(end), weights, deci, reri),
            *(full, full + edges, lead, grad.numel(), stages, common.COPIES, block, shape.edge),
            **shape.options(),
        )
    histogram += copies.sum(0)


def _specialisation(theta: torch.dtype, grad: torch.dtype, stages: int, parts: bool = False) -> Specialisation:
    """parts: DeCI and ReRI are written too."""
    shape = common.SWEEPS["hbm"]["alter_score"]
    block = common.block_of(shape, grad)
    t, g = f"*{common.TYPES[theta]}", f"*{common.TYPES[grad]}"
    part = g if parts else "constexpr"
    read = theta.itemsize + (1 + 2 * stages) * grad.itemsize
    moved = read + (3 if parts else 1) * grad.itemsize
    return Specialisation(
        op="alter_score",
        form=f"theta {t[1:]}, gradients {g[1:]}, {stages} stages" + (", DeCI and ReRI" if parts else ""),
        kernel=_alter_score_kernel,
        signature={"score": g, "histogram": "*i64", "theta": t, "grad": g, "start": (g,) * stages, "end": (g,) * stages}
        | {"weights": g, "deci": part, "reri": part}
        | dict.fromkeys(("full", "items", "lead", "size"), "i64")
        | dict.fromkeys(("S", "COPIES", "BLOCK", "EDGE"), "constexpr"),
        constants={"S": stages, "COPIES": common.COPIES, "BLOCK": block, "EDGE": shape.edge}
        | ({} if parts else {"deci": None, "reri": None}),
        budget=Budget(registers=shape.registers, shared=8192),
        divisible=("score", "histogram", "theta", "grad", "start", "end", "weights", *(("deci", "reri") * parts)),
        num_warps=shape.warps,
        minimum=moved,
        moved=moved,
        in_flight=(theta.itemsize + grad.itemsize) * block // (32 * shape.warps),
        options=shape.options(),
    )


SPECIALISATIONS = [
    _specialisation(torch.float32, torch.float32, 0),
    _specialisation(torch.float32, torch.float32, 2),
    _specialisation(torch.float32, torch.float32, 2, parts=True),
    _specialisation(torch.bfloat16, torch.float32, 2),
    _specialisation(torch.float64, torch.float64, 2),
]
