"""One global threshold over all scores, exactly k kept (Algorithm 1: mu = (S >= tau)); floors per layer on request."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from fastalter import ops
from fastalter.altermoma.arena import Entry, Layout
from fastalter.errors import MaskError, ScoringError
from fastalter.masks.mask import Mask


def keep_count(size: int, ratio: float) -> int:
    """k = round((1 - ratio) * N).

    Raises:
        MaskError: the ratio is not in [0, 1).
    """
    if not 0 <= ratio < 1:
        raise MaskError(f"ratio is {ratio}; give the share of weights to prune, in [0, 1), for example 0.8")
    return round((1 - ratio) * size)


def floor_count(size: int, min_keep: float) -> int:
    """How many of a layer's `size` entries must stay: a share of them (rounded up), or a count (at most all).

    Raises:
        MaskError: neither a float in (0, 1) nor an int of 1 or more.
    """
    if isinstance(min_keep, float) and 0 < min_keep < 1:
        return math.ceil(Fraction(repr(float(min_keep))) * size)  # 0.1 of 30 is 3, whatever 0.1 is in binary
    if isinstance(min_keep, int) and not isinstance(min_keep, bool) and min_keep >= 1:
        return min(min_keep, size)
    raise MaskError(f"min_keep is {min_keep!r}; give each layer's least share, such as 0.01, or a count, such as 1")


def select(
    score: Tensor,
    layout: Layout,
    keep: int,
    *,
    ratio: float,
    min_keep: float | None = None,
    metadata: dict[str, Any] | None = None,
    histogram: Tensor | None = None,
) -> Mask:
    """Keep the `keep` highest scores of an arena [N]; ties go to the lowest index.

    Args:
        min_keep: every layer keeps at least this share (a float in (0, 1), rounded up) or count (an int) of its
            entries, its own highest scores; what is left of `keep` goes to the highest scores of all the rest. So
            exactly `keep` stay, and no other choice under these floors has a higher sum. The metadata names min_keep
            and, as "raised", the layers that would have kept less.
        histogram: of these scores, as `ops.kth_value` takes it.

    Raises:
        MaskError: the scores hold NaN, or the floors need more than `keep`.
    """
    threshold, cut = _cut(score, keep, histogram)
    segments = layout.segments().to(score.device)
    bits, kept = ops.make_mask(score, threshold, cut, segments)
    facts = dict(metadata or {})
    if min_keep is not None:
        floors = [floor_count(entry.size, min_keep) for entry in layout.entries]
        _check_floors(layout, floors, keep, min_keep)
        raised = _below(kept, floors)
        if raised:
            chosen, threshold, raised = _with_floors(score, layout, floors, keep, raised)
            bits, kept = ops.make_mask(chosen, chosen.new_tensor(0.5), cut.new_tensor(-1), segments)
        facts |= {"min_keep": min_keep, "raised": [layout.entries[i].name for i in raised]}
    counts = dict(zip((entry.name for entry in layout.entries), kept.tolist(), strict=True))
    return Mask(bits.cpu(), layout, counts, ratio=ratio, threshold=float(threshold), metadata=facts)


def _cut(score: Tensor, keep: int, histogram: Tensor | None = None) -> tuple[Tensor, Tensor]:
    try:
        return ops.kth_value(score, keep, histogram)
    except ScoringError as error:
        raise MaskError(f"scores: {error}") from error


def _check_floors(layout: Layout, floors: list[int], keep: int, min_keep: float) -> None:
    needed = sum(floors)
    if needed > keep:
        highest = 1 - needed / layout.size
        raise MaskError(
            f"min_keep={min_keep}: the {len(floors)} layers need {needed:,} weights for it and {keep:,} stay; "
            f"lower min_keep, or prune at most a ratio of {math.floor(1e4 * highest) / 1e4:g}"
        )


def _with_floors(
    score: Tensor, layout: Layout, floors: list[int], keep: int, raised: list[int]
) -> tuple[Tensor, Tensor, list[int]]:
    """(1 where a weight stays and 0 elsewhere [N], the lowest kept score, the layers raised to their floor).

    A layer below its floor gets the floor and leaves the competition. That costs the others, so more may fall below
    theirs; none of those raised before would come back above its own, because the threshold only rises.
    """
    while True:
        competing = [i for i in range(len(floors)) if i not in set(raised)]
        inside = Layout([layout.entries[i] for i in competing])
        rest = torch.cat([_part(score, entry) for entry in inside.entries])
        stays, lowest = _highest(rest, keep - sum(floors[i] for i in raised))
        parts = torch.split(stays, [entry.size for entry in inside.entries])
        below = _below(torch.stack([part.count_nonzero() for part in parts]), [floors[i] for i in competing])
        if not below:
            break
        raised = sorted([*raised, *(competing[i] for i in below)])
    chosen = torch.zeros_like(score)
    for entry, part in zip(inside.entries, parts, strict=True):
        _part(chosen, entry).copy_(part)
    for i in raised:
        part, threshold = _highest(_part(score, layout.entries[i]), floors[i])
        _part(chosen, layout.entries[i]).copy_(part)
        lowest = torch.minimum(lowest, threshold)
    return chosen, lowest, raised


def _highest(score: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """(bool [n]: the `keep` highest, ties to the lowest index; the lowest of them)."""
    threshold, cut = _cut(score, keep)
    stays = score > threshold
    ties = (score == threshold).nonzero().flatten()
    stays[ties[ties <= cut]] = True
    return stays, threshold


def _part(arena: Tensor, entry: Entry) -> Tensor:
    return arena[entry.offset : entry.offset + entry.size]


def _below(kept: Tensor, floors: list[int]) -> list[int]:
    return [i for i, (count, floor) in enumerate(zip(kept.tolist(), floors, strict=True)) if count < floor]
