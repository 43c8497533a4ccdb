"""kth_value and make_mask: the exact threshold, the tie rule and the bits, by both implementations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastalter import ops
from fastalter.errors import ScoringError
from fastalter.ops import reference
from tests.ops.arenas import bits, dtypes, kinds, make, seeds, sizes


def histogram_of(score: Tensor) -> Tensor:
    return torch.bincount(reference.top_digit(score), minlength=ops.HISTOGRAM_BINS)


def oracle_kept(score: Tensor, keep: int) -> np.ndarray:
    """The keep largest, ties to the lowest index: a stable sort says so in one line."""
    kept = np.zeros(score.numel(), dtype=bool)
    kept[np.argsort(-score.numpy(), kind="stable")[:keep]] = True
    return kept


@settings(max_examples=150, deadline=None)
@given(kind=kinds, size=sizes, dtype=dtypes, seed=seeds, fraction=st.floats(0, 1), given_histogram=st.booleans())
def test_exactly_the_largest_stay(
    backend: str, kind: str, size: int, dtype: torch.dtype, seed: int, fraction: float, given_histogram: bool
) -> None:
    score = make(kind, size, dtype, seed)
    keep = round(fraction * size)
    threshold, cut = ops.kth_value(score, keep, histogram_of(score) if given_histogram else None)
    kept = oracle_kept(score, keep)
    if keep == 0:
        assert threshold == math.inf
        assert cut == -1
    else:
        exact = torch.kthvalue(score, size - keep + 1).values + 0.0  # a zero threshold is +0.0
        assert torch.equal(bits(threshold.view(1)), bits(exact.view(1)))
        assert int(cut) == np.flatnonzero(kept & (score == threshold).numpy()).max()

    edges = [0, 0, size // 3, size // 2, size]
    mask, counts = ops.make_mask(score, threshold, cut, torch.tensor(edges))
    packed = np.packbits(kept, bitorder="little")
    assert mask.numel() == 8 * math.ceil(size / 64)
    assert np.array_equal(mask.numpy()[: len(packed)], packed)
    assert not mask[len(packed) :].any()
    assert counts.tolist() == [int(kept[a:b].sum()) for a, b in itertools.pairwise(edges)]


@settings(max_examples=60, deadline=None)
@given(kind=kinds, size=sizes, dtype=dtypes, seed=seeds, level=st.floats(-2, 2), at=st.floats(0, 1))
def test_masks_obey_any_threshold_and_cut(
    backend: str, kind: str, size: int, dtype: torch.dtype, seed: int, level: float, at: float
) -> None:
    """Also thresholds that no score has, and cuts between any two elements."""
    score = make(kind, size, dtype, seed)
    threshold, cut = torch.tensor(level, dtype=dtype), torch.tensor(int(at * size) - 1)
    mask, _ = ops.make_mask(score, threshold, cut, torch.tensor([0, size]))
    s, t = score.numpy(), threshold.numpy()
    kept = (s > t) | ((s == t) & (np.arange(size) <= int(cut)))
    assert np.array_equal(np.unpackbits(mask.numpy(), bitorder="little")[:size].astype(bool), kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("keep", [1, 100, 99_999, 200_000, 300_007])
@pytest.mark.parametrize("kind", ["equal", "zeros", "ties", "normal", "wide"])
def test_large_arenas_by_several_threads(threads, kind: str, keep: int, dtype: torch.dtype) -> None:
    """Sizes at which the kernels share the work: the same answer for every thread count, and the right one."""
    score = make(kind, 300_007, dtype, 11)
    kept = np.packbits(oracle_kept(score, keep), bitorder="little")
    for count in (1, 2, 3):
        threads(count)
        threshold, cut = ops.kth_value(score, keep)
        assert threshold == torch.kthvalue(score, score.numel() - keep + 1).values
        mask, counts = ops.make_mask(score, threshold, cut, torch.tensor([0, 7, 150_001, 300_007]))
        assert np.array_equal(mask.numpy()[: len(kept)], kept)
        assert int(counts.sum()) == keep


def test_ties_go_to_the_lowest_index(backend: str) -> None:
    score = torch.tensor([1.0, 2.0, 1.0, 1.0, 0.0, 1.0])
    threshold, cut = ops.kth_value(score, 3)
    assert threshold == 1.0
    assert int(cut) == 2
    assert ops.make_mask(score, threshold, cut, torch.tensor([0, 6]))[0][0] == 0b000111


def test_zeros_are_not_taken_for_the_negative_numbers_beside_them(backend: str) -> None:
    """-65535 units of the last place: its key differs from -0's in the lower half only, and -0 counts as +0."""
    lowest = torch.tensor([-0x7FFF0001], dtype=torch.int32).view(torch.float32)  # bits 0x8000ffff
    score = torch.cat([torch.zeros(2), -torch.zeros(1), lowest, torch.zeros(1)])
    threshold, cut = ops.kth_value(score, 5)
    assert threshold == lowest
    assert int(cut) == 3


@pytest.mark.parametrize("nan", [math.nan, -math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_is_refused(backend: str, nan: float, dtype: torch.dtype) -> None:
    score = torch.tensor([1.0, nan, 2.0], dtype=dtype)
    for histogram in (None, histogram_of(score)):
        with pytest.raises(ScoringError, match="NaN"):
            ops.kth_value(score, 1, histogram)


def test_a_signalling_nan_is_refused_too(backend: str) -> None:
    """Its leading bits are infinity's: only the arithmetic on the way to the histogram tells them apart."""
    score = torch.tensor([0x7F800001, 0x3F800000], dtype=torch.int32).view(torch.float32)
    with pytest.raises(ScoringError, match="NaN"):
        ops.kth_value(score, 1)


def test_a_histogram_of_other_scores_is_refused() -> None:
    score = torch.randn(100)
    with pytest.raises(ScoringError, match="counts 101 scores, but there are 100"):
        ops.kth_value(score, 5, histogram_of(torch.randn(101)))
