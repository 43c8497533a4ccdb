"""Scoring kernels in the strict interpreter, in grid orders drawn from seeds, against the reference.

The interpreter's sweeps have blocks of 256 elements (128 of float64), edges of 128, a head of 32 and 3 programs.
"""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastalter import triton_kernels
from fastalter.ops import backends, reference
from fastalter.triton_kernels import apply_mask, common
from tests.kernels.interpreted.strict import Strict
from tests.ops.arenas import bits, dtypes, gradients, kinds, make, seeds

# Around the head (32), the words (32, 64), the edges (128), the blocks (128, 256, and 32 later) and the rounds of 3.
EDGES = (0, 1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 159, 160, 161, 255, 256, 257, 287, 288, 289, 768, 800, 1057)
sizes = st.one_of(st.sampled_from(EDGES), st.integers(1, 1200))
SOME_SIZES = (0, 1, 33, 256, 289, 1057)
DTYPES = (torch.float32, torch.float64)
few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
EPS = 2.0**-53  # half a unit in the last place of the float64 sums


def shifted(tensor: Tensor, offset: int) -> Tensor:
    """The same elements, as a slice that begins `offset` elements into its storage."""
    storage = torch.full((tensor.numel() + offset + 3,), math.nan).to(tensor.dtype)
    storage[offset : offset + tensor.numel()] = tensor
    return storage[offset : offset + tensor.numel()]


def assert_same(found: Tensor, expected: Tensor) -> None:
    """The same bits, but for those of NaN."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if found.dtype.is_floating_point:
        assert torch.equal(found.isnan(), expected.isnan())
        found, expected = (bits(torch.where(x.isnan(), 7.0, x)) for x in (found, expected))
    assert torch.equal(found, expected)


# ---- indicator_sums -------------------------------------------------------------------------------------------------


def check_sums(theta: Tensor, grad: Tensor, start: list[Tensor], end: list[Tensor]) -> Tensor:
    found = triton_kernels.launch_indicator_sums(theta, grad, start, end)
    expected = reference.indicator_sums(theta, grad, start, end)
    assert found.dtype == torch.float64
    # The same rounded products, added in another order: n additions of positive numbers err by n half-ulps at most.
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=2 * max(1, grad.numel()) * EPS, atol=0)
    return found


@few
@given(size=sizes, count=st.integers(0, 3), dtype=dtypes, offset=st.integers(0, 5), seed=seeds)
def test_sums(strict: Strict, size: int, count: int, dtype: torch.dtype, offset: int, seed: int) -> None:
    strict.seed = seed
    theta = shifted(make("normal", size, dtype, seed), offset)
    grad, start, end = gradients(size, count, dtype, seed)
    ends = [[shifted(x, offset) for x in arenas] for arenas in (start, end)]
    check_sums(theta, shifted(grad, offset), *ends)


@pytest.mark.parametrize("offsets", [(0, 0, 0, 0), (1, 1, 1, 1), (3, 3, 3, 3), (1, 2, 3, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_slices(strict: Strict, dtype: torch.dtype, offsets: Sequence[int]) -> None:
    """Aligned by one step back, and where no step aligns them all."""
    for size in SOME_SIZES:
        theta = make("wide", size, dtype, 1)
        grad, (start,), (end,) = gradients(size, 1, dtype, 1)
        theta, grad, start, end = (shifted(x, o) for x, o in zip((theta, grad, start, end), offsets, strict=True))
        check_sums(theta, grad, [start], [end])


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_sums_of_theta_in_low_precision(strict: Strict, low: torch.dtype, offset: int) -> None:
    for size, dtype in itertools.product(SOME_SIZES, DTYPES):
        grad, start, end = gradients(size, 2, dtype, 2)
        theta = shifted(make("normal", size, dtype, 2).to(low), offset)
        start, end = ([shifted(x, offset) for x in arenas] for arenas in (start, end))
        check_sums(theta, shifted(grad, offset), start, end)


def test_sums_do_not_depend_on_the_grid_order(strict: Strict) -> None:
    theta = make("wide", 1057, torch.float32, 5)
    grad, start, end = gradients(1057, 2, torch.float32, 5)
    strict.any_order(lambda: triton_kernels.launch_indicator_sums(theta, grad, start, end))


# ---- alter_score ----------------------------------------------------------------------------------------------------

SCALARS = (1.1, 0.9, 0.37, [0.21, 1.21, 2.21])


def check_score(theta: Tensor, grad: Tensor, start: list[Tensor], end: list[Tensor], parts: bool, offset: int) -> None:
    outputs = []
    for run in (triton_kernels.launch_alter_score, reference.alter_score):
        # deci, reri and score are slices too, with NaN around them that must stay.
        arenas = [torch.full((grad.numel() + offset + 3,), math.nan, dtype=grad.dtype) for _ in range(3)]
        score, deci, reri = (arena[offset : offset + grad.numel()] for arena in arenas)
        histogram = torch.ones(common.BINS.value, dtype=torch.int64)  # added to, not overwritten
        optional = (deci, reri) if parts else (None, None)
        run(score, histogram, theta, grad, start, end, *SCALARS[:3], SCALARS[3][: len(start)], *optional)
        outputs.append((*arenas, histogram))
    for found, expected in zip(*outputs, strict=True):
        assert_same(found, expected)
    assert int(outputs[0][-1].sum()) == common.BINS.value + grad.numel()


@few
@given(
    kind=kinds, size=sizes, count=st.integers(0, 3), dtype=dtypes, parts=st.booleans(), offset=st.integers(0, 5),
    seed=seeds,
)  # fmt: skip
def test_scores(
    strict: Strict, kind: str, size: int, count: int, dtype: torch.dtype, parts: bool, offset: int, seed: int
) -> None:
    strict.seed = seed
    theta = shifted(make(kind, size, dtype, seed), offset)
    grad, start, end = gradients(size, count, dtype, seed)
    ends = [[shifted(x, offset) for x in arenas] for arenas in (start, end)]
    check_score(theta, shifted(grad, offset), *ends, parts, offset)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_scores_of_theta_in_low_precision(strict: Strict, low: torch.dtype) -> None:
    for size, dtype, offset in ((289, torch.float32, 0), (1057, torch.float32, 3), (300, torch.float64, 1)):
        grad, start, end = gradients(size, 2, dtype, 3)
        theta = shifted(make("infinite", size, torch.float32, 3).to(low), offset)
        start, end = ([shifted(x, offset) for x in arenas] for arenas in (start, end))
        check_score(theta, shifted(grad, offset), start, end, True, offset)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_nothing_of_zeros_and_of_nan(strict: Strict, dtype: torch.dtype) -> None:
    """NaN counts in the last bin, a negative zero with the positive ones, an empty arena nowhere."""
    for size, value in ((0, 1.0), (300, 0.0), (300, math.nan)):
        theta, grad = torch.full((size,), value, dtype=dtype), torch.full((size,), -1.0, dtype=dtype)
        check_score(theta, grad, [], [], True, 0)
    histogram = torch.zeros(common.BINS.value, dtype=torch.int64)
    zeros = torch.zeros(40, dtype=dtype)
    triton_kernels.launch_alter_score(zeros.clone(), histogram, zeros, zeros, [], [], -1.0, 0.0, 1.0, [])
    assert histogram[0x8000] == 40


def test_scores_do_not_depend_on_the_grid_order(strict: Strict) -> None:
    theta = make("wide", 1057, torch.float32, 5)
    grad, start, end = gradients(1057, 1, torch.float32, 5)

    def run() -> list[Tensor]:
        score, histogram = torch.empty(1057), torch.zeros(common.BINS.value, dtype=torch.int64)
        triton_kernels.launch_alter_score(score, histogram, theta, grad, start, end, 1.0, 1.0, 0.3, [0.2])
        return [score, histogram]

    strict.any_order(run)


# ---- kth_value and make_mask ----------------------------------------------------------------------------------------


def histogram_of(score: Tensor) -> Tensor:
    return torch.bincount(reference.top_digit(score), minlength=common.BINS.value)


def check_selection(score: Tensor, keep: int, histogram: Tensor | None, edges: Sequence[int]) -> None:
    threshold, cut = triton_kernels.launch_kth_value(score, keep, histogram)
    expected_threshold, expected_cut = reference.kth_value(score, keep)
    assert_same(threshold.view(1), expected_threshold.view(1))
    assert_same(cut.view(1), expected_cut.view(1))
    mask, kept = triton_kernels.launch_make_mask(score, threshold, cut, torch.tensor(edges))
    expected_mask, expected_kept = reference.make_mask(score, threshold, cut, torch.tensor(edges))
    assert_same(mask, expected_mask)
    assert_same(kept, expected_kept)
    if edges[0] == 0 and edges[-1] == score.numel():
        assert int(kept.sum()) == keep


@few
@given(
    kind=kinds, size=sizes, dtype=dtypes, offset=st.integers(0, 5), seed=seeds, fraction=st.floats(0, 1),
    given_histogram=st.booleans(),
)  # fmt: skip
def test_exactly_the_largest_stay(
    strict: Strict, kind: str, size: int, dtype: torch.dtype, offset: int, seed: int, fraction: float,
    given_histogram: bool,
) -> None:  # fmt: skip
    strict.seed = seed
    score = shifted(make(kind, size, dtype, seed), offset)
    edges = [0, 0, size // 3, size // 2, size]
    check_selection(score, round(fraction * size), histogram_of(score) if given_histogram else None, edges)


@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "signs", "denormal", "infinite"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_selection_at_both_ends(strict: Strict, kind: str, dtype: torch.dtype) -> None:
    """All pruned, one kept, all but one, all kept; and segments that begin and end anywhere."""
    size = 545
    score = make(kind, size, dtype, 4)
    for keep, edges in zip(
        (0, 1, size - 1, size), ([0, size], [7, 7, 8, 300], [0, 256, 512, size], [0, size]), strict=True
    ):
        check_selection(score, keep, histogram_of(score), edges)


def test_selection_in_nothing(strict: Strict) -> None:
    for dtype, histogram in itertools.product(DTYPES, (None, torch.zeros(common.BINS.value, dtype=torch.int64))):
        check_selection(torch.empty(0, dtype=dtype), 0, histogram, [0, 0, 0])
        mask, kept = triton_kernels.launch_make_mask(
            torch.ones(40, dtype=dtype), torch.tensor(1.0, dtype=dtype), torch.tensor(5), torch.tensor([0])
        )
        assert mask.tolist() == [0b111111, 0, 0, 0, 0, 0, 0, 0]
        assert kept.shape == (0,)


def test_masks_obey_any_threshold_and_cut(strict: Strict) -> None:
    """Also thresholds that no score has, and cuts between any two elements."""
    for size, level, at in ((33, 0.25, 5), (256, 0.25, 255), (545, -0.1, -1), (1057, math.inf, -1), (1057, -0.75, 600)):
        score = make("ties", size, torch.float32, 8)
        found, expected = (
            run(score, torch.tensor(level), torch.tensor(at), torch.tensor([0, size // 2, size]))
            for run in (triton_kernels.launch_make_mask, reference.make_mask)
        )
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_neighbours_of_zero_keep_apart(strict: Strict) -> None:
    """-65535 units of the last place: its key differs from -0's in the lower half only, and -0 counts as +0."""
    lowest = torch.tensor([-0x7FFF0001], dtype=torch.int32).view(torch.float32)  # bits 0x8000ffff
    score = torch.cat([torch.zeros(2), -torch.zeros(1), lowest, torch.zeros(1)])
    for keep in range(6):
        check_selection(score, keep, None, [0, 5])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keep", [0, 1])
def test_nan_is_refused(strict: Strict, dtype: torch.dtype, keep: int) -> None:
    for nan in (math.nan, -math.nan):
        score = torch.tensor([1.0, nan, 2.0], dtype=dtype)
        for histogram in (None, histogram_of(score)):
            with pytest.raises(RuntimeError, match="kth_value: the scores hold NaN, which has no rank"):
                triton_kernels.launch_kth_value(score, keep, histogram)
    if dtype == torch.float32:
        score = torch.tensor([0x7F800001, 0x3F800000], dtype=torch.int32).view(torch.float32)  # a signalling one
        with pytest.raises(RuntimeError, match="NaN"):
            triton_kernels.launch_kth_value(score, keep)


@pytest.mark.parametrize("other", [90, 110])
def test_a_histogram_of_other_scores_is_refused(strict: Strict, other: int) -> None:
    """And harms nothing before it is: ranks beyond its counts stay within bounds."""
    score = make("normal", 100, torch.float32, 1)
    for keep in (0, 5, 100):
        with pytest.raises(RuntimeError, match=f"counts {other} scores, but there are 100"):
            triton_kernels.launch_kth_value(score, keep, histogram_of(make("normal", other, torch.float32, 2)))


def test_selection_does_not_depend_on_the_grid_order(strict: Strict) -> None:
    score = make("ties", 1057, torch.float32, 5)

    def run() -> list[Tensor]:
        threshold, cut = triton_kernels.launch_kth_value(score, 400)
        return [threshold, cut, *triton_kernels.launch_make_mask(score, threshold, cut, torch.tensor([0, 5, 1057]))]

    strict.any_order(run)


# ---- apply_mask -----------------------------------------------------------------------------------------------------

WIDTHS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def weights_of(dtype: torch.dtype) -> list[Tensor]:
    """Dense tensors of every layout there is, all bit patterns in them (NaN too)."""
    random = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        width = WIDTHS[dtype]
        limits = torch.iinfo(width)
        return torch.randint(limits.min, limits.max, shape, dtype=width, generator=random).view(dtype)

    return [
        draw(700),
        draw(7, 5, 3, 3).to(memory_format=torch.channels_last),
        draw(3, 4, 2, 3, 2).to(memory_format=torch.channels_last_3d),
        draw(19, 23).t(),
        draw(4, 5, 6).permute(1, 2, 0),
        draw(8, 1, 3, 1),
        draw(600)[1:598],
        draw(600)[3:],
        draw(1),
        draw(1)[0],
        draw(0, 3),
    ]


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("kept", [0.0, 0.3, 1.0])
def test_weights_are_masked_whatever_their_layout(strict: Strict, dtype: torch.dtype, kept: float) -> None:
    found, expected = weights_of(dtype), weights_of(dtype)
    offsets, total = [], 5
    for weight in found:
        offsets.append(total)
        total += weight.numel()
    flags = np.random.default_rng(1).random((total + 63) // 64 * 64) < kept
    mask = torch.from_numpy(np.packbits(flags, bitorder="little"))
    triton_kernels.launch_apply_mask(found, mask, offsets)
    reference.apply_mask(expected, mask, offsets)
    for a, b in zip(found, expected, strict=True):
        assert a.stride() == b.stride()
        assert torch.equal(a.view(WIDTHS[dtype]), b.view(WIDTHS[dtype]))


def test_the_neighbours_of_a_slice_stay(strict: Strict) -> None:
    for begin in (0, 1, 3):
        arena = torch.full((600,), 3.0)
        triton_kernels.launch_apply_mask([arena[begin : begin + 500]], torch.zeros(64, dtype=torch.uint8), [3])
        assert arena.nonzero().flatten().tolist() == [*range(begin), *range(begin + 500, 600)]


def test_dimensions_that_follow_each_other_become_one() -> None:
    order = apply_mask.in_memory_order
    assert order((4, 5, 6), (30, 6, 1)) == ((120,), (1,))
    assert order((4, 5, 2, 3), (30, 1, 15, 5)) == ((4, 6, 5), (30, 1, 6))  # channels last
    assert order((5, 4), (1, 5)) == ((4, 5), (1, 4))
    assert order((1, 1), (1, 1)) == ((1,), (1,))


# ---- channel_sum ----------------------------------------------------------------------------------------------------


def tables(shape: Sequence[int], begin: int) -> tuple[Tensor, Tensor]:
    """Of a weight [O, I, h, w] at `begin`: a group per output channel, one per input channel, an empty one."""
    out, into, *kernel = shape
    taps = math.prod(kernel)
    rows = [(begin + o * into * taps, 1, 0, into * taps) for o in range(out)]
    rows += [(begin + i * taps, out, into * taps, taps) for i in range(into)]
    return torch.tensor(rows), torch.tensor([*range(len(rows) + 1), len(rows)])


def check_channels(theta: Tensor, grad: Tensor, members: Tensor, groups: Tensor) -> None:
    found = triton_kernels.launch_channel_sum(theta, grad, members, groups)
    expected = reference.channel_sum(theta, grad, members, groups)
    magnitude = reference.channel_sum(theta.abs(), grad.abs(), members, groups)
    assert found.dtype == torch.float64
    # Additions of both signs err against the sum of the magnitudes.
    assert ((found - expected).abs() <= 2 * grad.numel() * EPS * magnitude).all()


@few
@given(
    out=st.integers(1, 7), into=st.integers(1, 7), taps=st.sampled_from([1, 9, 27]), dtype=dtypes,
    offset=st.integers(0, 3), seed=seeds,
)  # fmt: skip
def test_channels(strict: Strict, out: int, into: int, taps: int, dtype: torch.dtype, offset: int, seed: int) -> None:
    strict.seed = seed
    size = 5 + out * into * taps
    grad, _, _ = gradients(size, 0, dtype, seed)
    check_channels(
        shifted(make("normal", size, dtype, seed), offset), shifted(grad, offset), *tables((out, into, taps), 5)
    )


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_channels_in_low_precision_and_groups_of_many_members(strict: Strict, low: torch.dtype) -> None:
    theta = make("normal", 500, torch.float32, 1).to(low)
    grad, _, _ = gradients(500, 0, torch.float32, 1)
    members = torch.tensor([[0, 1, 0, 200], [3, 5, 20, 4], [499, 1, 7, 1], [0, 0, 5, 9], [100, 3, 100, 100]])
    check_channels(theta, grad, members, torch.tensor([0, 2, 2, 5]))
    assert triton_kernels.launch_channel_sum(theta, grad, members, torch.tensor([0])).shape == (0,)


# ---- the package ----------------------------------------------------------------------------------------------------


def test_importing_the_package_imports_no_triton() -> None:
    check = "import sys, fastalter.triton_kernels; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_every_triton_op_has_a_launcher() -> None:
    assert {f"launch_{op}" for op in backends.BY_NAME["triton"].ops} == set(triton_kernels.LAUNCHERS)
    assert all(callable(getattr(triton_kernels, name)) for name in triton_kernels.LAUNCHERS)
    with pytest.raises(AttributeError, match="launch_nothing"):
        triton_kernels.launch_nothing  # noqa: B018
