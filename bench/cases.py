"""What the benchmarks time: one case per op on one workload, each checked against the reference before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastalter import ops
from fastalter.ops import reference

# Elements and reactivation stages of camera, lidar and fusion, in the proportions of BEVFusion's 40 M weights.
SPLIT = ((31_000_000, 1), (2_700_000, 1), (6_300_000, 2))
RATIO = 0.8


def scaled_split(size: int) -> tuple[tuple[int, int], ...]:
    """SPLIT shrunk to about `size` elements; the offsets of its branches are no multiples of anything."""
    return tuple((max(1, elements * size // 40_000_000), stages) for elements, stages in SPLIT)


@dataclass
class Branch:
    """One branch's slice of the arenas, and the weights of its score."""

    score: Tensor
    theta: Tensor
    grad: Tensor
    start: list[Tensor]
    end: list[Tensor]
    weights: list[float]


class Workload:
    """Arenas of random numbers, split into branches; weights as a model's, gradients a thousand times smaller."""

    def __init__(self, split: tuple[tuple[int, int], ...], dtype: torch.dtype = torch.float32) -> None:
        self.split = split
        self.size = sum(elements for elements, _ in split)
        generator = torch.Generator().manual_seed(0)
        scales = (0.05, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3)
        arenas = [torch.empty(self.size, dtype=dtype).normal_(0, scale, generator=generator) for scale in scales]
        self.theta, self.grad, *self.ends = arenas
        self.pruned = self.theta.clone()  # not theta itself: its zeros would change the scores of the next round
        self.score = torch.empty_like(self.theta)
        self.histogram = torch.zeros(ops.HISTOGRAM_BINS, dtype=torch.int64)
        self.keep = round((1 - RATIO) * self.size)
        self.segments = torch.linspace(0, self.size, 200).long()  # as many weights as a model has, or so
        self.branches = list(self._cut())
        self.indicator_sums()
        self.alter_score()
        self.threshold, self.cut = ops.kth_value(self.score, self.keep, self.histogram)
        self.mask, self.kept = ops.make_mask(self.score, self.threshold, self.cut, self.segments)

    def _cut(self) -> Iterator[Branch]:
        begin = 0
        for elements, stages in self.split:
            at = slice(begin, begin + elements)
            start, end = ([arena[at] for arena in self.ends[which::2][:stages]] for which in (0, 1))
            yield Branch(self.score[at], self.theta[at], self.grad[at], start, end, [])
            begin += elements

    def indicator_sums(self) -> None:
        for branch in self.branches:
            sums = ops.indicator_sums(branch.theta, branch.grad, branch.start, branch.end).tolist()
            branch.weights = [1 / sums[0], *(1 / (len(branch.start) * total) for total in sums[1:])]

    def alter_score(self) -> None:
        self.histogram.zero_()
        for b in self.branches:
            weights = (1.0, 1.0, b.weights[0], b.weights[1:])
            ops.alter_score(b.score, self.histogram, b.theta, b.grad, b.start, b.end, *weights)

    def kth_value(self) -> None:
        self.threshold, self.cut = ops.kth_value(self.score, self.keep, self.histogram)

    def make_mask(self) -> None:
        self.mask, self.kept = ops.make_mask(self.score, self.threshold, self.cut, self.segments)

    def apply_mask(self) -> None:
        ops.apply_mask([self.pruned], self.mask, [0])

    def plain(self) -> tuple[Tensor, Tensor]:
        """The same bulk arithmetic as one writes it in torch: scores, threshold by kthvalue, boolean mask."""
        parts = []
        for b in self.branches:
            deci = (b.theta * b.grad).abs()
            score = deci / deci.sum()
            for start, end in zip(b.start, b.end, strict=True):
                reri = (b.theta * start - b.theta * end).abs()
                score = score - reri / reri.sum() / len(b.start)
            parts.append(score)
        score = torch.cat(parts)
        threshold = torch.kthvalue(score, self.size - self.keep + 1).values
        return threshold, score >= threshold


@dataclass
class Case:
    """One op on a workload: `run` is timed; `bytes` is what it must read and write at the least; `check` asserts."""

    run: Callable[[], None]
    bytes: int
    check: Callable[[], None]


def cases(work: Workload) -> dict[str, Case]:
    """The case of every op, by the op's name."""
    element = work.theta.element_size()
    arena, mask = work.size * element, work.mask.numel()
    inputs = sum(b.theta.numel() * (2 + 2 * len(b.start)) for b in work.branches) * element
    return {
        "indicator_sums": Case(work.indicator_sums, inputs, lambda: _check_sums(work)),
        "alter_score": Case(work.alter_score, inputs + arena, lambda: _check_scores(work)),
        "kth_value": Case(work.kth_value, arena, lambda: _check_threshold(work)),
        "make_mask": Case(work.make_mask, arena + mask, lambda: _check_mask(work)),
        "apply_mask": Case(work.apply_mask, 2 * arena + mask, lambda: _check_applied(work)),
    }


def _check_sums(work: Workload) -> None:
    for b in work.branches:
        found = ops.indicator_sums(b.theta, b.grad, b.start, b.end)
        torch.testing.assert_close(found, reference.indicator_sums(b.theta, b.grad, b.start, b.end), rtol=1e-12, atol=0)


def _check_scores(work: Workload) -> None:
    histogram = torch.zeros_like(work.histogram)
    for b in work.branches:
        expected = torch.empty_like(b.score)
        reference.alter_score(
            expected, histogram, b.theta, b.grad, b.start, b.end, 1.0, 1.0, b.weights[0], b.weights[1:]
        )
        assert torch.equal(b.score, expected), "alter_score differs from the reference"
    assert torch.equal(work.histogram, histogram), "alter_score's histogram differs from the reference"


def _check_threshold(work: Workload) -> None:
    for found, expected in zip((work.threshold, work.cut), reference.kth_value(work.score, work.keep), strict=True):
        assert torch.equal(found, expected), "kth_value differs from the reference"


def _check_mask(work: Workload) -> None:
    mask, kept = reference.make_mask(work.score, work.threshold, work.cut, work.segments)
    assert torch.equal(work.mask, mask), "make_mask differs from the reference"
    assert torch.equal(work.kept, kept), "make_mask's counts differ from the reference"
    assert int(kept.sum()) == work.keep, f"kept {int(kept.sum())}, not exactly {work.keep}"


def _check_applied(work: Workload) -> None:
    expected, found = work.theta.clone(), work.theta.clone()
    reference.apply_mask([expected], work.mask, [0])
    ops.apply_mask([found], work.mask, [0])
    assert torch.equal(found, expected), "apply_mask differs from the reference"
