"""Scoring, threshold and mask over arenas, and sums per channel group: schemas, fakes and typed wrappers.

An *arena* is a 1-D contiguous tensor, float32 or float64; all arenas of one call share size, dtype (T below) and
device. Only theta may have less: bfloat16 or float16 parameters are cast up to T as they are read. Every op gives the
same bits for any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastalter.errors import MaskError, ScoringError
from fastalter.ops import backends
from fastalter.ops.checks import (
    FLOATS,
    check_arenas,
    check_bits,
    check_histogram,
    check_stages,
    check_theta,
    is_dense,
)

SCHEMAS = {
    "indicator_sums": "(Tensor theta, Tensor grad, Tensor[] start, Tensor[] end) -> Tensor",
    "alter_score": "(Tensor(a!) score, Tensor(b!) histogram, Tensor theta, Tensor grad, Tensor[] start, Tensor[] end, "
    "float alpha, float beta, float deci_weight, float[] reri_weights, Tensor(c!)? deci=None, Tensor(d!)? reri=None) "
    "-> ()",
    "kth_value": "(Tensor score, int keep, Tensor? histogram=None) -> (Tensor threshold, Tensor cut)",
    "make_mask": "(Tensor score, Tensor threshold, Tensor cut, Tensor segments) -> (Tensor mask, Tensor kept)",
    "apply_mask": "(Tensor(a!)[] theta, Tensor mask, int[] offsets) -> ()",
    "channel_sum": "(Tensor theta, Tensor grad, Tensor members, Tensor groups) -> Tensor",
}


# ---- fake implementations: shapes and dtypes only, for torch.compile and the meta device ----------------------------


def fake_indicator_sums(theta: Tensor, grad: Tensor, start: Sequence[Tensor], end: Sequence[Tensor]) -> Tensor:
    return theta.new_empty(1 + len(start), dtype=torch.float64)


def fake_alter_score(*arguments: object, **options: object) -> None:
    return None


def fake_kth_value(score: Tensor, keep: int, histogram: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return score.new_empty(()), score.new_empty((), dtype=torch.int64)


def fake_make_mask(score: Tensor, threshold: Tensor, cut: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
    mask = score.new_empty((score.numel() + 63) // 64 * 8, dtype=torch.uint8)
    return mask, segments.new_empty(segments.numel() - 1)


def fake_apply_mask(theta: Sequence[Tensor], mask: Tensor, offsets: Sequence[int]) -> None:
    return None


def fake_channel_sum(theta: Tensor, grad: Tensor, members: Tensor, groups: Tensor) -> Tensor:
    return theta.new_empty(groups.shape[0] - 1, dtype=torch.float64)


# ---- typed wrappers -------------------------------------------------------------------------------------------------


def indicator_sums(theta: Tensor, grad: Tensor, start: Sequence[Tensor] = (), end: Sequence[Tensor] = ()) -> Tensor:
    """Sums that normalise the indicators over one branch (eq. 11-13).

    Args: theta, grad: arenas [N]. start, end: S arenas each, the gradients at both ends of every reactivation stage.
    Returns: float64 [1 + S] on the arenas' device: sum |theta*grad|, then per stage sum |theta*(start_s - end_s)|.
    Products are rounded to T, then summed over blocks of fixed size, the blocks' sums in order in float64.
    Raises: ScoringError if the arenas differ in size, dtype or device, or start and end in number.
    """
    first = check_theta("indicator_sums", theta, grad)
    check_stages("indicator_sums", first, start, end)
    check_arenas("indicator_sums", first, {"grad": grad})
    sums: Tensor = backends.implementation("indicator_sums", theta.device)(theta, grad, list(start), list(end))
    return sums


def alter_score(
    score: Tensor,
    histogram: Tensor,
    theta: Tensor,
    grad: Tensor,
    start: Sequence[Tensor] = (),
    end: Sequence[Tensor] = (),
    alpha: float = 1.0,
    beta: float = 1.0,
    deci_weight: float = 1.0,
    reri_weights: Sequence[float] = (),
    deci: Tensor | None = None,
    reri: Tensor | None = None,
) -> None:
    """The AlterEva score S (eq. 11-13) of one branch, written into `score`, its key histogram added into `histogram`.

    d = deci_weight*|theta*grad|;  r = sum_s reri_weights[s]*|theta*(start_s - end_s)|;  score = alpha*d - beta*r, in T.
    The weights are the reciprocal normalisers (and the 1/M of eq. 13).

    Args: score: arena [N], overwritten. histogram: int64 [65536], *added to* (so that branches share one), counting the
    top 16 bits of each score's order-preserving key. deci, reri: arenas [N] that receive d and r, on request.
    Raises: ScoringError if shapes, dtypes, devices or the number of weights do not agree.
    """
    first = check_theta("alter_score", theta, grad)
    check_stages("alter_score", first, start, end)
    optional = {name: arena for name, arena in (("deci", deci), ("reri", reri)) if arena is not None}
    check_arenas("alter_score", first, {"score": score, "grad": grad, **optional})
    check_histogram("alter_score", histogram, theta.device)
    if len(reri_weights) != len(start):
        raise ScoringError(f"alter_score: {len(reri_weights)} reri_weights for {len(start)} stages: pass one per stage")
    backends.implementation("alter_score", theta.device)(
        *(score, histogram, theta, grad, list(start), list(end)),
        *(float(alpha), float(beta), float(deci_weight), [float(weight) for weight in reri_weights], deci, reri),
    )


def kth_value(score: Tensor, keep: int, histogram: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Where to cut so that exactly `keep` scores stay: (threshold, cut). Exact; neither sorts nor copies the arena.

    Args: score: arena [N]. keep: 0 <= keep <= N. histogram: int64 [65536] as `alter_score` fills it, for exactly these
    scores; saves one sweep.
    Returns: threshold, 0-dim of T: the keep-th largest score, bitwise torch.kthvalue(score, N - keep + 1) (a zero is
    given as +0.0); +inf for keep = 0. cut, 0-dim int64: index of the last element equal to the threshold that is still
    kept when ties go to the lowest index; -1 for keep = 0.
    Raises: ScoringError if keep is out of range, the scores hold NaN, or the histogram is not theirs.
    """
    check_arenas("kth_value", score, {})
    if not 0 <= keep <= score.numel():
        raise ScoringError(f"kth_value: cannot keep {keep} of {score.numel()} scores: keep must lie in 0..N")
    if histogram is not None:
        check_histogram("kth_value", histogram, score.device)
    try:
        threshold, cut = backends.implementation("kth_value", score.device)(score, keep, histogram)
    except RuntimeError as error:
        raise ScoringError(str(error).splitlines()[0]) from error
    return threshold, cut


def make_mask(score: Tensor, threshold: Tensor, cut: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
    """Bit-packed mask of the scores that stay: score > threshold, or equal to it with index <= cut.

    Args: score: arena [N]. threshold, cut: 0-dim, as `kth_value` returns them. segments: int64 [K + 1], ascending
    offsets into the arena, within 0..N.
    Returns: mask uint8 [8*ceil(N/64)], element i is bit i % 8 (least significant first) of byte i // 8, padding bits 0;
    kept int64 [K], the number of elements kept in each segment.
    Raises: MaskError if an argument has another dtype, shape or device, or the segments are not ascending in 0..N.
    """
    check_arenas("make_mask", score, {}, MaskError)
    for name, tensor, dtype, dim in (
        ("threshold", threshold, score.dtype, 0),
        ("cut", cut, torch.int64, 0),
        ("segments", segments, torch.int64, 1),
    ):
        if tensor.dtype != dtype or tensor.dim() != dim or tensor.device != score.device:
            found = f"{tensor.dim()}-dim {tensor.dtype} on {tensor.device}"
            raise MaskError(f"make_mask: {name} is {found}, but must be {dim}-dim {dtype} on {score.device}")
    edges = segments.tolist()
    if not edges or edges != sorted(edges) or edges[0] < 0 or edges[-1] > score.numel():
        raise MaskError(f"make_mask: segments must be one or more ascending offsets within 0..{score.numel()}")
    mask, kept = backends.implementation("make_mask", score.device)(score, threshold, cut, segments.contiguous())
    return mask, kept


def apply_mask(theta: Sequence[Tensor], mask: Tensor, offsets: Sequence[int]) -> None:
    """Set to +0.0, in place, every element whose bit is 0; the others keep their bits.

    Args: theta: tensors of any shape, float32, float64, bfloat16 or float16, of any dense strides (channels_last,
    transposed). mask: uint8, as `make_mask` returns it. offsets: per tensor, the bit of its first element; bits follow
    logical row-major order, whatever the strides.
    Works on parameters that require grad, without autograd seeing it; bumps their version counters.
    Raises: MaskError if a tensor's bits lie outside the mask, or a dtype, device or stride cannot be served.
    """
    check_bits("apply_mask", mask, 0, 0, "theta")
    if len(theta) != len(offsets):
        raise MaskError(f"apply_mask: {len(theta)} tensors but {len(offsets)} offsets: pass one offset per tensor")
    for t, (weight, offset) in enumerate(zip(theta, offsets, strict=True)):
        if weight.dtype not in FLOATS or weight.device != mask.device:
            found = f"{weight.dtype} on {weight.device}"
            raise MaskError(f"apply_mask: theta[{t}] is {found}, but must be of a floating dtype on {mask.device}")
        check_bits("apply_mask", mask, weight.numel(), offset, f"theta[{t}]")
        if not is_dense(weight):
            strides = f"shape {tuple(weight.shape)} and strides {weight.stride()}"
            raise MaskError(f"apply_mask: theta[{t}] with {strides} overlaps itself or has gaps: pass a dense tensor")
    with torch.no_grad():
        backends.implementation("apply_mask", mask.device)(list(theta), mask, list(offsets))
    for weight in theta:
        torch.autograd.graph.increment_version(weight)


def channel_sum(theta: Tensor, grad: Tensor, members: Tensor, groups: Tensor) -> Tensor:
    """Sum of theta*grad over each channel group: dL/dm for a gate m on the group's channels, where no norm follows.

    Args: theta, grad: arenas [N]. members: int64 [R, 4], one row (start, outer, step, inner) per channel of a weight:
    the elements start + o*step + i for o < outer, i < inner. (Of a weight [O, I, kh, kw] at offset f, output channel o
    is (f + o*I*kh*kw, 1, 0, I*kh*kw) and input channel i is (f + i*kh*kw, O, I*kh*kw, kh*kw).) groups: int64 [G + 1],
    ascending: group g has the members groups[g] to groups[g + 1] - 1.
    Returns: float64 [G]; products are rounded to T, then summed.
    Raises: ScoringError if arenas or tables do not fit together.
    """
    check_arenas("channel_sum", check_theta("channel_sum", theta, grad), {"grad": grad})
    _check_members(theta, members, groups)
    sums: Tensor = backends.implementation("channel_sum", theta.device)(theta, grad, members, groups)
    return sums


def _check_members(theta: Tensor, members: Tensor, groups: Tensor) -> None:
    for name, table, dim in (("members", members, 2), ("groups", groups, 1)):
        if table.dtype != torch.int64 or table.dim() != dim or table.device != theta.device:
            found = f"{table.dim()}-dim {table.dtype} on {table.device}"
            raise ScoringError(f"channel_sum: {name} is {found}, but must be {dim}-dim torch.int64 on {theta.device}")
        if not table.is_contiguous():
            raise ScoringError(f"channel_sum: {name} is not contiguous: pass {name}.contiguous()")
    edges = groups.tolist()
    if members.shape[1] != 4 or not edges or edges != sorted(edges) or edges[0] < 0 or edges[-1] > members.shape[0]:
        raise ScoringError("channel_sum: members must be [R, 4] and groups ascending offsets within 0..R")
    start, outer, step, inner = members.unbind(1)
    last = start + (outer - 1) * step + inner
    if members.numel() and bool(((members < 0).any(1) | ((outer > 0) & (inner > 0) & (last > theta.numel()))).any()):
        raise ScoringError(f"channel_sum: a member reaches outside the arena of {theta.numel()} elements")
