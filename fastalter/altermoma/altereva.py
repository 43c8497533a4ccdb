"""AlterEva: S = alpha * DeCI / sum DeCI - beta * ReRI / sum ReRI, branch by branch (eq. 6, 10 to 13)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastalter import ops
from fastalter.altermoma.arena import Arena
from fastalter.fusion.adapt import FUSION


@dataclass
class AlterEva:
    """Scores over the arena and what they were normalised by.

    score      S, shape [N], the arena's dtype
    histogram  counts of the scores' leading key bits, int64 [65536]; `ops.kth_value` starts from it
    sums       branch -> {"deci": sum DeCI, "reri": {masked branch: sum ReRI}}
    deci, reri the two normalised terms, shape [N], where asked for: S = alpha * deci - beta * reri
    warnings   one line per term that is zero throughout
    """

    score: Tensor
    histogram: Tensor
    sums: dict[str, dict[str, object]]
    deci: Tensor | None = None
    reri: Tensor | None = None
    warnings: list[str] = field(default_factory=list)


def alter_eva(arena: Arena, alpha: float = 1.0, beta: float = 1.0, *, keep_terms: bool = False) -> AlterEva:
    """Score every weight of the arena.

    A sensor branch takes the mean of its ReRI over the stages in which another branch was masked (eq. 11; with two
    sensors that is one stage). Fusion takes beta/M of each of M stages' normalised ReRI (eq. 13).

    Raises:
        ScoringError: a gradient is not finite; names the weight.
    """
    result = AlterEva(
        score=torch.empty_like(arena.theta),
        histogram=torch.zeros(ops.HISTOGRAM_BINS, dtype=torch.int64, device=arena.theta.device),
        sums={},
        deci=torch.empty_like(arena.theta) if keep_terms else None,
        reri=torch.empty_like(arena.theta) if keep_terms else None,
    )
    for branch in arena.layout.branches:
        _score_branch(arena, branch, alpha, beta, result)
    return result


def _score_branch(arena: Arena, branch: str, alpha: float, beta: float, result: AlterEva) -> None:
    inside, stages = arena.layout.range(branch), arena.stages_of(branch)
    theta, grad = arena.theta[inside], arena.grad.branch(branch)
    start = [arena.start[masked].branch(branch) for masked in stages]
    end = [arena.end[masked].branch(branch) for masked in stages]

    sums = ops.indicator_sums(theta, grad, start, end)
    if not bool(torch.isfinite(sums).all()):
        arena.check_finite()
    deci_sum, *reri_sums = sums.tolist()
    deci_weight, reri_weights = _normalisers(
        branch, deci_sum, dict(zip(stages, reri_sums, strict=True)), result.warnings
    )
    result.sums[branch] = {"deci": deci_sum, "reri": dict(zip(stages, reri_sums, strict=True))}
    ops.alter_score(
        result.score[inside],
        result.histogram,
        theta,
        grad,
        start,
        end,
        alpha,
        beta,
        deci_weight,
        reri_weights,
        deci=None if result.deci is None else result.deci[inside],
        reri=None if result.reri is None else result.reri[inside],
    )


def _normalisers(branch: str, deci: float, reri: dict[str, float], warnings: list[str]) -> tuple[float, list[float]]:
    """1 / sum for every term; 0 for one that is zero throughout, so that the term is 0 and never NaN."""
    if deci == 0:
        warnings.append(f"branch {branch!r}: DeCI is zero for every weight (no gradient reaches it)")
    if branch == FUSION:
        totals = {masked: value * len(reri) for masked, value in reri.items()}
    else:
        totals = dict.fromkeys(reri, sum(reri.values()))
    for masked, total in totals.items():
        if total == 0:
            warnings.append(f"branch {branch!r}: ReRI with {masked} masked is zero for every weight; that term is 0")
    return _inverse(deci), [_inverse(total) for total in totals.values()]


def _inverse(total: float) -> float:
    return 1 / total if total else 0.0
