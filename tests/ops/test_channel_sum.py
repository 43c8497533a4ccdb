"""channel_sum: both implementations against products rounded by numpy and added up without error."""

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
from tests.ops.arenas import dtypes, low_dtypes, make, seeds
from tests.ops.tolerances import of_sum


def members_of(offset: int, shape: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """The output and then the input channels of a weight [O, I, ...] that starts at this offset."""
    out, width, *kernel = shape
    area = math.prod(kernel)
    outputs = [(offset + o * width * area, 1, 0, width * area) for o in range(out)]
    return outputs + [(offset + i * area, out, width * area, area) for i in range(width)]


def check(theta: Tensor, grad: Tensor, rows: list[tuple[int, int, int, int]], edges: list[int]) -> Tensor:
    """Run the op and hold it against the exact sum; returns what it found."""
    members = torch.tensor(rows, dtype=torch.int64).view(-1, 4)
    found = ops.channel_sum(theta, grad, members, torch.tensor(edges))
    products = (theta.to(grad.dtype).numpy() * grad.numpy()).astype(np.float64)
    assert found.dtype == torch.float64
    assert found.shape == (len(edges) - 1,)
    for group, (first, last) in enumerate(itertools.pairwise(edges)):
        terms = [
            products[start + o * step : start + o * step + inner]
            for start, outer, step, inner in rows[first:last]
            for o in range(outer)
        ]
        together = np.concatenate(terms) if terms else np.zeros(0)
        scale = math.fsum(np.abs(together))
        assert abs(float(found[group]) - math.fsum(together)) <= of_sum(len(together)) * scale
    return found


shapes = st.tuples(st.integers(1, 9), st.integers(1, 40), st.sampled_from([1, 3]), st.sampled_from([1, 3, 8]))


@settings(max_examples=60, deadline=None)
@given(shapes=st.lists(shapes, min_size=1, max_size=3), dtype=dtypes, seed=seeds, shuffled=st.booleans())
def test_groups_equal_an_exact_oracle(
    backend: str, shapes: list[tuple[int, ...]], dtype: torch.dtype, seed: int, shuffled: bool
) -> None:
    rows: list[tuple[int, int, int, int]] = []
    size = seed % 5  # weights need not start on any boundary
    for shape in shapes:
        rows += members_of(size, shape)
        size += math.prod(shape)
    random = np.random.default_rng(seed)
    if shuffled:
        rows = [rows[i] for i in random.permutation(len(rows))]
    cuts = sorted(random.integers(0, len(rows) + 1, 4).tolist())
    check(make("normal", size, dtype, seed), make("normal", size, dtype, seed + 1), rows, [0, *cuts, len(rows)])


@pytest.mark.parametrize("inner", [255, 256, 257, 4095, 4096, 4097, 9000])
def test_rows_of_any_length(backend: str, inner: int) -> None:
    """Around where the kernel changes its way of summing, and around its blocks."""
    theta, grad = make("normal", 4 * inner + 3, torch.float32, 1), make("normal", 4 * inner + 3, torch.float32, 2)
    rows = [(1, 4, inner, inner), (0, 1, 0, inner), (inner, 1, 0, inner), (2, 3, 1, inner), (5, 2, 0, 7)]
    check(theta, grad, rows, [0, 1, 2, 3, 4, 5])


def test_empty_groups_members_and_arenas(backend: str) -> None:
    theta, grad = make("normal", 10, torch.float32, 1), make("normal", 10, torch.float32, 2)
    found = check(theta, grad, [(0, 0, 5, 5), (10, 1, 0, 0), (3, 2, 0, 2), (3, 1, 0, 2)], [0, 0, 2, 3, 4, 4])
    assert found[[0, 1, 4]].tolist() == [0, 0, 0]
    assert found[2] == 2 * found[3]
    assert check(theta[:0], grad[:0], [], [0]).shape == (0,)


@settings(max_examples=30, deadline=None)
@given(dtype=dtypes, low=low_dtypes, seed=seeds)
def test_theta_of_lower_precision_is_cast_up_as_it_is_read(
    backend: str, dtype: torch.dtype, low: torch.dtype, seed: int
) -> None:
    rows = members_of(3, (5, 31, 3, 3)) + members_of(3, (1, 300 + seed % 100))
    theta, grad = make("normal", 2000, low, seed), make("normal", 2000, dtype, seed + 1)
    edges = [0, 5, len(rows)]
    assert torch.equal(check(theta, grad, rows, edges), check(theta.to(dtype), grad, rows, edges))


def test_any_number_of_threads_and_any_order_of_members_gives_the_same_bits(threads) -> None:
    """A member's bits depend neither on who sums it nor on which members are its neighbours."""
    shape = (64, 192, 3, 3)  # large enough to be shared out
    size = math.prod(shape)
    theta, grad = make("wide", size, torch.float32, 5), make("normal", size, torch.float32, 6)
    rows = torch.tensor(members_of(0, shape))
    edges = torch.arange(len(rows) + 1)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(rows)))
    results = []
    for count in (1, 2, 3, 3):
        threads(count)
        results.append(ops.channel_sum(theta, grad, rows, edges))
        shuffled = ops.channel_sum(theta, grad, rows[order].contiguous(), edges)
        assert torch.equal(shuffled, results[-1][order])
    for other in results[1:]:
        assert torch.equal(results[0].view(torch.int64), other.view(torch.int64))
