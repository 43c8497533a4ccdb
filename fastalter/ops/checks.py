"""What the wrappers check before an implementation sees its arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastalter.errors import FastalterError, MaskError, ScoringError
from fastalter.ops.reference import HISTOGRAM_BINS

LOW_PRECISION = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, torch.float64, *LOW_PRECISION)


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor fills a stretch of memory exactly once, in some order of its dimensions."""
    expected = 1
    for stride, size in sorted((st, sz) for st, sz in zip(tensor.stride(), tensor.shape, strict=True) if sz != 1):
        if stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True


def check_arenas(
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


def check_theta(op: str, theta: Tensor, grad: Tensor) -> Tensor:
    """The arena that sets size, dtype and device of all others: theta, or grad where theta has a lower precision."""
    if theta.dtype not in LOW_PRECISION or grad.dtype in LOW_PRECISION:
        return theta
    if theta.shape != grad.shape or theta.device != grad.device or not theta.is_contiguous():
        found, wanted = (f"{tuple(x.shape)} on {x.device}" for x in (theta, grad))
        raise ScoringError(f"{op}: theta is {found}, but must be a contiguous {wanted} like grad")
    return grad


def check_stages(op: str, first: Tensor, start: Sequence[Tensor], end: Sequence[Tensor]) -> None:
    if len(start) != len(end):
        raise ScoringError(f"{op}: {len(start)} start arenas but {len(end)} end arenas: pass one of each per stage")
    stages = {f"start[{s}]": arena for s, arena in enumerate(start)} | {
        f"end[{s}]": arena for s, arena in enumerate(end)
    }
    check_arenas(op, first, stages)


def check_histogram(op: str, histogram: Tensor, device: torch.device) -> None:
    if histogram.dtype != torch.int64 or histogram.shape != (HISTOGRAM_BINS,) or histogram.device != device:
        found = f"{tuple(histogram.shape)} {histogram.dtype} on {histogram.device}"
        raise ScoringError(f"{op}: histogram is {found}, but must be ({HISTOGRAM_BINS},) torch.int64 on {device}")
    if not histogram.is_contiguous():
        raise ScoringError(f"{op}: histogram is not contiguous: pass histogram.contiguous()")


def check_bits(op: str, mask: Tensor, bits: int, offset: int, what: str) -> None:
    """The mask is well formed and holds `bits` bits from `offset` on."""
    if mask.dtype != torch.uint8 or mask.dim() != 1 or not mask.is_contiguous():
        raise MaskError(f"{op}: mask is {mask.dim()}-dim {mask.dtype}, but must be a contiguous 1-D uint8 tensor")
    if not 0 <= offset <= 8 * mask.numel() - bits:
        raise MaskError(f"{op}: {what} needs bits {offset}..{offset + bits}, but the mask has {8 * mask.numel()}")


def check_same(op: str, tensors: dict[str, Tensor | None], kind: type[FastalterError]) -> None:
    """All of one floating dtype and on one device; None is passed over."""
    (lead, first), *others = ((name, tensor) for name, tensor in tensors.items() if tensor is not None)
    if first.dtype not in FLOATS:
        raise kind(f"{op}: {lead} is {first.dtype}, but must be float32, float64, bfloat16 or float16")
    for name, tensor in others:
        if tensor.dtype != first.dtype or tensor.device != first.device:
            found, wanted = (f"{x.dtype} on {x.device}" for x in (tensor, first))
            raise kind(f"{op}: {name} is {found}, but must be {wanted} like {lead}")
