"""The ops of the scoring path on arenas in the proportions of BEVFusion's branches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.cases.case import Case, Run
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

    def __init__(
        self, split: tuple[tuple[int, int], ...], dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        self.split = split
        self.size = sum(elements for elements, _ in split)
        generator = torch.Generator().manual_seed(0)
        scales = (0.05, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3)
        drawn = (torch.empty(self.size, dtype=dtype).normal_(0, scale, generator=generator) for scale in scales)
        arenas = [arena.to(device) for arena in drawn]
        self.theta, self.grad, *self.ends = arenas
        self.pruned = self.theta.clone()  # not theta itself: its zeros would change the scores of the next round
        self.score = torch.empty_like(self.theta)
        self.histogram = torch.zeros(ops.HISTOGRAM_BINS, dtype=torch.int64, device=device)
        self.keep = round((1 - RATIO) * self.size)
        self.segments = torch.linspace(0, self.size, 200).long().to(device)  # as many weights as a model has
        self.members, self.groups = _channels(self.size, device)
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

    def channel_sum(self) -> Tensor:
        return ops.channel_sum(self.theta, self.grad, self.members, self.groups)

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


def _channels(size: int, device: str) -> tuple[Tensor, Tensor]:
    """Members and groups of the arena seen as output channels of 256x3x3 weights, two channels to a group."""
    width = 256 * 9
    start = torch.arange(0, size - width + 1, width)
    members = torch.stack([start, torch.ones_like(start), torch.zeros_like(start), torch.full_like(start, width)], 1)
    groups = torch.arange(0, start.numel() + 1, 2)
    return members.to(device), groups.to(device)


def cases(work: Workload) -> dict[str, Case]:
    """The case of every op, by the op's name."""
    element = work.theta.element_size()
    arena, mask = work.size * element, work.mask.numel()
    inputs = sum(b.theta.numel() * (2 + 2 * len(b.start)) for b in work.branches) * element
    channels = 2 * work.members.shape[0] * int(work.members[0, 3]) * element
    spec, peer, w = _References(work), _Peers(work), work
    rows: dict[str, tuple[int, Run, Run, dict[str, Run]]] = {
        "indicator_sums": (inputs, lambda: _check_sums(w), spec.indicator_sums, {"torch": peer.sums}),
        "alter_score": (inputs + arena, lambda: _check_scores(w), spec.alter_score, {"torch": peer.score}),
        "kth_value": (arena, lambda: _check_threshold(w), spec.kth_value, {"torch.kthvalue": peer.kthvalue}),
        "make_mask": (arena + mask, lambda: _check_mask(w), spec.make_mask, {"torch, bool mask": peer.bool_mask}),
        "apply_mask": (2 * arena + mask, lambda: _check_applied(w), spec.apply_mask, {"torch.mul_": peer.multiply}),
        "channel_sum": (channels, lambda: _check_channels(w), spec.channel_sum, {"torch": peer.channel_sum}),
    }
    return {op: Case(getattr(work, op), *row) for op, row in rows.items()}  # type: ignore[arg-type]


class _References:
    """Every op's specification on the workload."""

    def __init__(self, work: Workload) -> None:
        self.work = work
        self.score = torch.empty_like(work.score)
        self.histogram = torch.zeros_like(work.histogram)

    def indicator_sums(self) -> None:
        for b in self.work.branches:
            reference.indicator_sums(b.theta, b.grad, b.start, b.end)

    def alter_score(self) -> None:
        begin = 0
        for b in self.work.branches:
            score = self.score[begin : begin + b.theta.numel()]
            weights = (1.0, 1.0, b.weights[0], b.weights[1:])
            reference.alter_score(score, self.histogram, b.theta, b.grad, b.start, b.end, *weights)
            begin += b.theta.numel()

    def kth_value(self) -> object:
        return reference.kth_value(self.work.score, self.work.keep)

    def make_mask(self) -> object:
        return reference.make_mask(self.work.score, self.work.threshold, self.work.cut, self.work.segments)

    def apply_mask(self) -> None:
        reference.apply_mask([self.work.pruned], self.work.mask, [0])

    def channel_sum(self) -> object:
        return reference.channel_sum(self.work.theta, self.work.grad, self.work.members, self.work.groups)


class _Peers:
    """The same work as one writes it in torch."""

    def __init__(self, work: Workload) -> None:
        self.work = work
        self.kept = work.score >= work.threshold
        self.theta = work.theta.clone()

    def sums(self) -> None:
        for b in self.work.branches:
            (b.theta * b.grad).abs().sum()
            for start, end in zip(b.start, b.end, strict=True):
                (b.theta * (start - end)).abs().sum()

    def score(self) -> None:
        for b in self.work.branches:
            score = (b.theta * b.grad).abs() * b.weights[0]
            for weight, start, end in zip(b.weights[1:], b.start, b.end, strict=True):
                score = score - (b.theta * (start - end)).abs() * weight

    def kthvalue(self) -> object:
        return torch.kthvalue(self.work.score, self.work.size - self.work.keep + 1)

    def bool_mask(self) -> object:
        return self.work.score >= self.work.threshold

    def multiply(self) -> object:
        return self.theta.mul_(self.kept)

    def channel_sum(self) -> object:
        width = int(self.work.members[0, 3])
        size = self.work.members.shape[0] * width
        return (self.work.theta[:size] * self.work.grad[:size]).view(-1, width).sum(1)


def _check_sums(work: Workload) -> None:
    for b in work.branches:
        found = ops.indicator_sums(b.theta, b.grad, b.start, b.end)
        torch.testing.assert_close(
            found, reference.indicator_sums(b.theta, b.grad, b.start, b.end), rtol=sums_tolerance(work), atol=0
        )


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


def _check_channels(work: Workload) -> None:
    expected = reference.channel_sum(work.theta, work.grad, work.members, work.groups)
    size = float((work.theta * work.grad).abs().sum() / expected.numel())  # signed sums: judged by what they add up
    torch.testing.assert_close(work.channel_sum(), expected, rtol=0, atol=sums_tolerance(work) * size)


def sums_tolerance(work: Workload) -> float:
    """Relative error of a sum: float64 on the CPU; on a GPU float32 within a block, added pairwise."""
    return 1e-12 if work.theta.device.type == "cpu" or work.theta.dtype == torch.float64 else 1e-5
