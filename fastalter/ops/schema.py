"""Every op: its schema, its fake (Meta) implementation and its typed wrapper.

The wrappers check what they are given, once, and hand it to the implementation that `backends` chooses; the
implementations behind them may then assume well-formed arguments. An *arena* is a 1-D contiguous tensor, float32 or
float64; all arenas of one call share size, dtype (T below) and device. Every op gives the same bits for any number of
threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastalter.errors import MaskError, ScoringError
from fastalter.ops import backends, reference
from fastalter.ops.reference import HISTOGRAM_BINS

SCHEMAS = {
    "indicator_sums": "(Tensor theta, Tensor grad, Tensor[] start, Tensor[] end) -> Tensor",
    "alter_score": "(Tensor(a!) score, Tensor(b!) histogram, Tensor theta, Tensor grad, Tensor[] start, Tensor[] end, "
    "float alpha, float beta, float deci_weight, float[] reri_weights, Tensor(c!)? deci=None, Tensor(d!)? reri=None) "
    "-> ()",
    "kth_value": "(Tensor score, int keep, Tensor? histogram=None) -> (Tensor threshold, Tensor cut)",
    "make_mask": "(Tensor score, Tensor threshold, Tensor cut, Tensor segments) -> (Tensor mask, Tensor kept)",
    "apply_mask": "(Tensor(a!)[] theta, Tensor mask, int[] offsets) -> ()",
}


# ---- fake implementations: shapes and dtypes only, for torch.compile and the meta device ----------------------------


def _fake_indicator_sums(theta: Tensor, grad: Tensor, start: Sequence[Tensor], end: Sequence[Tensor]) -> Tensor:
    return theta.new_empty(1 + len(start), dtype=torch.float64)


def _fake_alter_score(*arguments: object, **options: object) -> None:
    return None


def _fake_kth_value(score: Tensor, keep: int, histogram: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return score.new_empty(()), score.new_empty((), dtype=torch.int64)


def _fake_make_mask(score: Tensor, threshold: Tensor, cut: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
    mask = score.new_empty((score.numel() + 63) // 64 * 8, dtype=torch.uint8)
    return mask, segments.new_empty(segments.numel() - 1)


def _fake_apply_mask(theta: Sequence[Tensor], mask: Tensor, offsets: Sequence[int]) -> None:
    return None


def _register() -> object:
    """Define the ops with torch; the returned library must outlive them, for its end takes the registrations along."""
    torch_library: Any = torch.library  # untyped in torch
    library = torch_library.Library("fastalter", "DEF")
    for name, schema in SCHEMAS.items():
        library.define(name + schema)
        # "CompositeExplicitAutograd" serves every device that has no kernel of its own.
        library.impl(name, getattr(reference, name), "CompositeExplicitAutograd")
        torch_library.register_fake(f"fastalter::{name}", globals()[f"_fake_{name}"], lib=library)
    return library


_library = _register()


# ---- typed wrappers -------------------------------------------------------------------------------------------------


def indicator_sums(theta: Tensor, grad: Tensor, start: Sequence[Tensor] = (), end: Sequence[Tensor] = ()) -> Tensor:
    """Sums that normalise the indicators over one branch (eq. 11-13).

    Args: theta, grad: arenas [N]. start, end: S arenas each, the gradients at both ends of every reactivation stage.
    Returns: float64 [1 + S] on the arenas' device: sum |theta*grad|, then per stage sum |theta*(start_s - end_s)|.
    Products are rounded to T, then summed in float64 over blocks of fixed size.
    Raises: ScoringError if the arenas differ in size, dtype or device, or start and end in number.
    """
    _check_stages("indicator_sums", theta, start, end)
    _check_arenas("indicator_sums", theta, {"grad": grad})
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
    _check_stages("alter_score", theta, start, end)
    optional = {name: arena for name, arena in (("deci", deci), ("reri", reri)) if arena is not None}
    _check_arenas("alter_score", theta, {"score": score, "grad": grad, **optional})
    _check_histogram("alter_score", histogram, theta.device)
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
    _check_arenas("kth_value", score, {})
    if not 0 <= keep <= score.numel():
        raise ScoringError(f"kth_value: cannot keep {keep} of {score.numel()} scores: keep must lie in 0..N")
    if histogram is not None:
        _check_histogram("kth_value", histogram, score.device)
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
    _check_arenas("make_mask", score, {}, MaskError)
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

    Args: theta: tensors of any shape, float32 or float64, of any dense strides (channels_last, transposed). mask:
    uint8, as `make_mask` returns it. offsets: per tensor, the bit of its first element; bits follow logical row-major
    order, whatever the strides.
    Works on parameters that require grad, without autograd seeing it; bumps their version counters.
    Raises: MaskError if a tensor's bits lie outside the mask, or a dtype, device or stride cannot be served.
    """
    if mask.dtype != torch.uint8 or mask.dim() != 1 or not mask.is_contiguous():
        raise MaskError(f"apply_mask: mask is {mask.dim()}-dim {mask.dtype}, but must be a contiguous 1-D uint8 tensor")
    if len(theta) != len(offsets):
        raise MaskError(f"apply_mask: {len(theta)} tensors but {len(offsets)} offsets: pass one offset per tensor")
    for t, (weight, offset) in enumerate(zip(theta, offsets, strict=True)):
        if weight.dtype not in (torch.float32, torch.float64) or weight.device != mask.device:
            found = f"{weight.dtype} on {weight.device}"
            raise MaskError(f"apply_mask: theta[{t}] is {found}, but must be float32 or float64 on {mask.device}")
        if not 0 <= offset <= 8 * mask.numel() - weight.numel():
            bits = f"bits {offset}..{offset + weight.numel()}"
            raise MaskError(f"apply_mask: theta[{t}] needs {bits}, but the mask has {8 * mask.numel()}")
        if not _is_dense(weight):
            strides = f"shape {tuple(weight.shape)} and strides {weight.stride()}"
            raise MaskError(f"apply_mask: theta[{t}] with {strides} overlaps itself or has gaps: pass a dense tensor")
    with torch.no_grad():
        backends.implementation("apply_mask", mask.device)(list(theta), mask, list(offsets))
    for weight in theta:
        torch.autograd.graph.increment_version(weight)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the tensor fills a stretch of memory exactly once, in some order of its dimensions."""
    expected = 1
    for stride, size in sorted((st, sz) for st, sz in zip(tensor.stride(), tensor.shape, strict=True) if sz != 1):
        if stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True


def _check_arenas(
    op: str, first: Tensor, others: dict[str, Tensor], kind: type[ScoringError] | type[MaskError] = ScoringError
) -> None:
    if first.dtype not in (torch.float32, torch.float64) or first.dim() != 1 or not first.is_contiguous():
        found = f"{first.dim()}-dim {first.dtype}"
        raise kind(f"{op}: the arena is {found}, but must be a contiguous 1-D float32 or float64 tensor")
    for name, arena in others.items():
        if arena.shape != first.shape or arena.dtype != first.dtype or arena.device != first.device:
            found = f"{tuple(arena.shape)} {arena.dtype} on {arena.device}"
            wanted = f"{tuple(first.shape)} {first.dtype} on {first.device}"
            raise kind(f"{op}: {name} is {found}, but must be {wanted} like the other arenas")
        if not arena.is_contiguous():
            raise kind(f"{op}: {name} is not contiguous: pass {name}.contiguous()")


def _check_stages(op: str, theta: Tensor, start: Sequence[Tensor], end: Sequence[Tensor]) -> None:
    if len(start) != len(end):
        raise ScoringError(f"{op}: {len(start)} start arenas but {len(end)} end arenas: pass one of each per stage")
    stages = {f"start[{s}]": arena for s, arena in enumerate(start)} | {
        f"end[{s}]": arena for s, arena in enumerate(end)
    }
    _check_arenas(op, theta, stages)


def _check_histogram(op: str, histogram: Tensor, device: torch.device) -> None:
    if histogram.dtype != torch.int64 or histogram.shape != (HISTOGRAM_BINS,) or histogram.device != device:
        found = f"{tuple(histogram.shape)} {histogram.dtype} on {histogram.device}"
        raise ScoringError(f"{op}: histogram is {found}, but must be ({HISTOGRAM_BINS},) torch.int64 on {device}")
    if not histogram.is_contiguous():
        raise ScoringError(f"{op}: histogram is not contiguous: pass histogram.contiguous()")
