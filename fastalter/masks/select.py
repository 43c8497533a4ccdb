"""One global threshold over all scores, exactly k kept (Algorithm 1: mu = (S >= tau))."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastalter import ops
from fastalter.altermoma.arena import Layout
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


def select(
    score: Tensor,
    layout: Layout,
    keep: int,
    *,
    ratio: float,
    metadata: dict[str, Any] | None = None,
    histogram: Tensor | None = None,
) -> Mask:
    """Keep the `keep` highest scores of an arena [N]; ties go to the lowest index.

    Raises:
        MaskError: the scores hold NaN.
    """
    try:
        threshold, cut = ops.kth_value(score, keep, histogram)
    except ScoringError as error:
        raise MaskError(f"scores: {error}") from error
    bits, kept = ops.make_mask(score, threshold, cut, layout.segments().to(score.device))
    counts = dict(zip((entry.name for entry in layout.entries), kept.tolist(), strict=True))
    return Mask(bits.cpu(), layout, counts, ratio=ratio, threshold=float(threshold), metadata=dict(metadata or {}))
