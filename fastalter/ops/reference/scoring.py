"""Scores, threshold and mask over arenas. Works through them in chunks: temporaries stay small beside a model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

HISTOGRAM_BINS = 1 << 16
CHUNK = 1 << 20  # elements; a multiple of 64, so that every chunk starts on a byte of the mask


def _chunks(size: int) -> Iterator[slice]:
    for begin in range(0, size, CHUNK):
        yield slice(begin, min(begin + CHUNK, size))


def indicator_sums(theta: Tensor, grad: Tensor, start: Sequence[Tensor], end: Sequence[Tensor]) -> Tensor:
    """The sums of eq. 11-13: float64 [1 + S] = sum |theta*grad|, then per stage sum |theta*(start_s - end_s)|."""
    sums = torch.zeros(1 + len(start), dtype=torch.float64, device=theta.device)
    for at in _chunks(theta.numel()):
        weight = theta[at].to(grad.dtype)
        sums[0] += (weight * grad[at]).abs().sum(dtype=torch.float64)
        for s, (first, last) in enumerate(zip(start, end, strict=True), start=1):
            sums[s] += (weight * (first[at] - last[at])).abs().sum(dtype=torch.float64)
    return sums


def alter_score(
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
    """Eq. 11-13 in the gradients' dtype; the order of operations is part of the specification (it fixes every bit)."""
    a, b, dw, *rw = torch.tensor([alpha, beta, deci_weight, *reri_weights], dtype=grad.dtype, device=theta.device)
    for at in _chunks(theta.numel()):
        weight = theta[at].to(grad.dtype)
        d = dw * (weight * grad[at]).abs()
        r = torch.zeros_like(d)
        for share, first, last in zip(rw, start, end, strict=True):
            r = r + share * (weight * (first[at] - last[at])).abs()
        score[at] = a * d - b * r
        histogram += torch.bincount(top_digit(score[at]), minlength=HISTOGRAM_BINS)
        if deci is not None:
            deci[at] = d
        if reri is not None:
            reri[at] = r


def top_digit(score: Tensor) -> Tensor:
    """Top 16 bits of the order-preserving key of each value: int64 in [0, 65536).

    The key of a float is its bit pattern with the sign bit flipped, or with all bits flipped if it is negative; keys
    compare as unsigned integers exactly as the floats do. -0 counts as +0, and every NaN as the largest key there is.
    """
    integer, shift = (torch.int32, 16) if score.dtype == torch.float32 else (torch.int64, 48)
    bits = (score + 0.0).view(integer)
    magnitude = torch.iinfo(integer).max
    key = torch.where(bits < 0, bits ^ magnitude, bits)  # signed order; adding half the range below makes it unsigned
    return torch.where(score.isnan(), HISTOGRAM_BINS - 1, (key >> shift).to(torch.int64) + HISTOGRAM_BINS // 2)


def kth_value(score: Tensor, keep: int, histogram: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The keep-th largest score, and the index of the last element equal to it that stays (ties: lowest index first).

    The histogram only saves the fast implementations a sweep; it cannot change the answer.
    """
    if score.isnan().any():
        raise RuntimeError("kth_value: the scores hold NaN, which has no rank")
    if keep == 0:
        infinity = torch.full((), float("inf"), dtype=score.dtype, device=score.device)
        return infinity, torch.full((), -1, dtype=torch.int64, device=score.device)
    threshold = torch.kthvalue(score, score.numel() - keep + 1).values + 0.0
    ties = (score == threshold).nonzero().flatten()
    above = (score > threshold).sum()
    return threshold, ties[keep - 1 - above].clone()


def make_mask(score: Tensor, threshold: Tensor, cut: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
    """Bit-packed mask uint8 [8*ceil(N/64)], least significant bit first, and the kept count per segment, int64 [K]."""
    size = score.numel()
    keep = torch.zeros(64 * -(-size // 64), dtype=torch.bool, device=score.device)
    for at in _chunks(size):
        index = torch.arange(at.start, at.stop, device=score.device)
        keep[at] = (score[at] > threshold) | ((score[at] == threshold) & (index <= cut))
    place = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=score.device)
    mask = torch.zeros(keep.numel() // 8, dtype=torch.uint8, device=score.device)
    for bit in range(8):
        mask += keep[bit::8] * place[bit]
    ends = segments.tolist()
    kept = [int(keep[begin:end].count_nonzero()) for begin, end in itertools.pairwise(ends)]
    return mask, torch.tensor(kept, dtype=torch.int64, device=score.device)


def apply_mask(theta: Sequence[Tensor], mask: Tensor, offsets: Sequence[int]) -> None:
    """theta_t becomes +0.0 where its bit is 0; the bit of element j (row-major) of tensor t is offsets[t] + j."""
    for weight, offset in zip(theta, offsets, strict=True):
        index = torch.arange(offset, offset + weight.numel(), device=mask.device)
        bit = (mask[index >> 3] >> (index & 7)) & 1
        weight.masked_fill_(bit.view(weight.shape) == 0, 0.0)


def channel_sum(theta: Tensor, grad: Tensor, members: Tensor, groups: Tensor) -> Tensor:
    """float64 [G]: per group the sum of theta*grad over its members, the elements start + o*step + i of the arenas."""
    sums = torch.zeros(groups.numel() - 1, dtype=torch.float64, device=theta.device)
    for group, (first, last) in enumerate(itertools.pairwise(groups.tolist())):
        for start, outer, step, inner in members[first:last].tolist():
            place = ((outer, inner), (step, 1))
            of_theta, of_grad = (x.as_strided(*place, x.storage_offset() + start) for x in (theta, grad))
            sums[group] += (of_theta.to(grad.dtype) * of_grad).sum(dtype=torch.float64)
    return sums
