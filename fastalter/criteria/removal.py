"""Removal in rounds: the lowest scores go, the rest is scored again, until the ratio is reached (SynFlow, IMP)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastalter import ops
from fastalter.altermoma import Layout
from fastalter.masks import select


class Removal:
    """Which weights are left after each round; equal exponential steps, remaining = (1 - ratio)^(round / rounds).

    score  [N]: the last round's scores of what the rounds before it left; a weight that went in round r has r - rounds,
           below every score. So the k highest of all are the survivors, exactly, for k = round((1 - ratio) * N).
    bits   the packed mask of what is left, as `ops.make_mask` makes it; None before the first removal
    """

    def __init__(self, layout: Layout, ratio: float, rounds: int) -> None:
        self.layout = layout
        self.ratio = ratio
        self.rounds = rounds
        self.round = 0
        self.bits: Tensor | None = None
        self.score: Tensor | None = None

    def apply(self, *arenas: Tensor) -> None:
        """Zero what is gone, in place; each arena is [N]."""
        if self.bits is not None:
            ops.apply_mask(list(arenas), self.bits.to(arenas[0].device), [0] * len(arenas))

    def next(self, score: Tensor) -> Tensor:
        """Take this round's scores [N], finite and >= 0 (what is gone may hold anything); returns `self.score`.

        The last round removes nothing: its cut is the mask's, made from the score.
        """
        self.round += 1
        if self.score is not None and self.bits is not None:
            score = torch.where(self._left(score), score, self.score)
        if self.round < self.rounds:
            score = self._cut(score)
        self.score = score
        return score

    def _cut(self, score: Tensor) -> Tensor:
        kept = round(self.layout.size * (1 - self.ratio) ** (self.round / self.rounds))
        self.bits = select(score, self.layout, kept, ratio=self.ratio).bits
        going = ~self._left(score) & (score >= 0)
        return score.masked_fill(going, float(self.round - self.rounds))

    def _left(self, like: Tensor) -> Tensor:
        """bool [N]: what is left."""
        flags = torch.ones_like(like)
        self.apply(flags)
        return flags != 0
