"""indicator_sums and alter_score: both implementations against float64 oracles, and against each other bit for bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastalter import ops
from fastalter.ops import reference
from tests.ops.arenas import bits, dtypes, gradients, kinds, low_dtypes, make, seeds, sizes
from tests.ops.tolerances import UNIT, of_sum

stages = st.integers(0, 3)


@settings(max_examples=60, deadline=None)
@given(size=sizes, count=stages, dtype=dtypes, seed=seeds)
def test_sums_equal_an_exact_oracle(backend: str, size: int, count: int, dtype: torch.dtype, seed: int) -> None:
    theta = make("normal", size, dtype, seed)
    grad, start, end = gradients(size, count, dtype, seed)
    sums = ops.indicator_sums(theta, grad, start, end)
    # Oracle: products rounded to the arena's dtype by numpy, then added without any rounding error.
    t, g, s, e = theta.numpy(), grad.numpy(), [x.numpy() for x in start], [x.numpy() for x in end]
    products = [t * g, *(t * (first - last) for first, last in zip(s, e, strict=True))]
    expected = [math.fsum(np.abs(product).astype(np.float64)) for product in products]
    assert sums.dtype == torch.float64
    np.testing.assert_allclose(sums.numpy(), expected, rtol=of_sum(size), atol=0)


def oracle_score(
    theta: Tensor, grad: Tensor, start: list[Tensor], end: list[Tensor], weights: list[float]
) -> np.ndarray:
    """Eq. 11-13 in float64 from the same inputs."""
    alpha, beta, deci, *reri = weights
    t, g = theta.double().numpy(), grad.double().numpy()
    change = sum(
        (w * np.abs(t * s.double().numpy() - t * e.double().numpy()) for w, s, e in zip(reri, start, end, strict=True)),
        start=np.zeros_like(t),
    )
    return alpha * deci * np.abs(t * g) - beta * change


@settings(max_examples=60, deadline=None)
@given(size=sizes, count=stages, dtype=dtypes, seed=seeds)
def test_scores_equal_the_equations_in_float64(
    backend: str, size: int, count: int, dtype: torch.dtype, seed: int
) -> None:
    theta = make("normal", size, dtype, seed)
    grad, start, end = gradients(size, count, dtype, seed)
    weights = [1.25, 0.75, 0.3, *(0.1 + k for k in range(count))]
    score = torch.full_like(theta, math.nan)
    histogram = torch.zeros(ops.HISTOGRAM_BINS, dtype=torch.int64)
    ops.alter_score(score, histogram, theta, grad, start, end, *weights[:3], weights[3:])
    expected = oracle_score(theta, grad, start, end, weights)
    # About ten roundings of terms no larger than this.
    scale = 1 + np.abs(theta.numpy()).max(initial=0) * 8 * (1 + count) * (1 + count)
    np.testing.assert_allclose(score.double().numpy(), expected, rtol=0, atol=20 * scale * UNIT[dtype])
    assert int(histogram.sum()) == size


@settings(max_examples=120, deadline=None)
@given(kind=kinds, size=sizes, count=stages, dtype=dtypes, seed=seeds)
def test_cpp_scores_equal_the_reference_bit_for_bit(
    kind: str, size: int, count: int, dtype: torch.dtype, seed: int
) -> None:
    theta = make(kind, size, dtype, seed)
    grad, start, end = gradients(size, count, dtype, seed)
    scalars = (1.1, 0.9, 0.37, [0.21 + k for k in range(count)])
    outputs = []
    for run in (torch.ops.fastalter.alter_score, reference.alter_score):
        score, deci, reri = (torch.full_like(theta, math.nan) for _ in range(3))
        histogram = torch.ones(ops.HISTOGRAM_BINS, dtype=torch.int64)  # added to, not overwritten
        run(score, histogram, theta, grad, start, end, *scalars, deci, reri)
        outputs.append((score, deci, reri, histogram))
    for found, expected in zip(*outputs, strict=True):
        assert torch.equal(found.isnan(), expected.isnan())
        found, expected = (torch.nan_to_num(x, nan=7.0, posinf=math.inf, neginf=-math.inf) for x in (found, expected))
        assert torch.equal(bits(found), bits(expected))


@settings(max_examples=60, deadline=None)
@given(kind=kinds, size=sizes, count=stages, dtype=dtypes, low=low_dtypes, seed=seeds)
def test_theta_of_lower_precision_is_cast_up_as_it_is_read(
    backend: str, kind: str, size: int, count: int, dtype: torch.dtype, low: torch.dtype, seed: int
) -> None:
    theta = make(kind, size, low, seed)
    grad, start, end = gradients(size, count, dtype, seed)
    scalars = (1.1, 0.9, 0.37, [0.21 + k for k in range(count)])
    outputs = []
    for weight in (theta, theta.to(dtype)):
        score, histogram = torch.full_like(grad, math.nan), torch.zeros(ops.HISTOGRAM_BINS, dtype=torch.int64)
        ops.alter_score(score, histogram, weight, grad, start, end, *scalars)
        outputs.append((bits(score), histogram, ops.indicator_sums(weight, grad, start, end)))
    for found, expected in zip(*outputs, strict=True):
        assert torch.equal(torch.nan_to_num(found), torch.nan_to_num(expected))


def test_slices_at_odd_offsets_are_written_exactly(backend: str) -> None:
    """A branch is a slice of the arena: not aligned to anything, and its neighbours must stay as they are."""
    for begin in range(20):
        arena = torch.full((6000,), 3.0)
        theta, grad = torch.randn(2, 6000, generator=torch.Generator().manual_seed(begin))
        at = slice(begin, 5000 + begin)
        histogram = torch.zeros(ops.HISTOGRAM_BINS, dtype=torch.int64)
        ops.alter_score(arena[at], histogram, theta[at], grad[at])
        assert torch.equal(arena[at], (theta[at] * grad[at]).abs())
        assert (arena[:begin] == 3).all()
        assert (arena[5000 + begin :] == 3).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_histogram_counts_the_leading_bits_of_the_keys(backend: str, dtype: torch.dtype) -> None:
    """Keys written from their definition, with struct's view of the bits; every kind of number there is."""
    values = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, 1e-45, -1e-45, 1e-320, 3.4e38, -3.4e38, math.nan, -math.nan]
    score = torch.tensor(values, dtype=dtype)
    unsigned, width = (np.uint32, 32) if dtype == torch.float32 else (np.uint64, 64)
    expected = np.zeros(65536, dtype=np.int64)
    for value, bit_pattern in zip(score.tolist(), score.numpy().view(unsigned).tolist(), strict=True):
        sign = 1 << (width - 1)
        key = sign if value == 0 else bit_pattern ^ (2 * sign - 1) if bit_pattern & sign else bit_pattern | sign
        expected[65535 if math.isnan(value) else key >> (width - 16)] += 1
    # theta * 1 is theta, so alpha * |theta| - beta * 0 has theta's magnitude; its sign comes from alpha's.
    histogram = torch.zeros(65536, dtype=torch.int64)
    positive = score.signbit().logical_not()
    for alpha, part in ((1.0, score[positive]), (-1.0, score[~positive])):
        written = torch.empty_like(part)
        ops.alter_score(written, histogram, part, torch.ones_like(part), alpha=alpha)
    assert torch.equal(histogram, torch.from_numpy(expected))


def test_any_number_of_threads_gives_the_same_bits(threads) -> None:
    size = 300_007
    theta = make("wide", size, torch.float32, 5)
    grad, start, end = gradients(size, 2, torch.float32, 5)
    results = []
    for count in (1, 2, 3):
        threads(count)
        score, histogram = torch.empty_like(theta), torch.zeros(ops.HISTOGRAM_BINS, dtype=torch.int64)
        sums = ops.indicator_sums(theta, grad, start, end)
        ops.alter_score(score, histogram, theta, grad, start, end, 1.0, 1.0, 0.3, [0.2, 0.7])
        results.append((sums.view(torch.int64), bits(score), histogram))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
