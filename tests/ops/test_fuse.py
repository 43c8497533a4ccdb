"""masked_fuse and its norm: torch's convolution, batch norm and ReLU as the oracle, for all mask states."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastalter import ops
from fastalter.ops import reference
from tests.ops.arenas import all_dtypes, bits, make, seeds
from tests.ops.tolerances import SMALLEST, WHOLE, of_product_sum, of_store, of_sum

STATES = ("both", "first", "second")
CPP: Any = torch.ops.fastalter


def draw(shape: Sequence[int], dtype: torch.dtype, seed: int, kind: str = "normal") -> Tensor:
    return make(kind, math.prod(shape), dtype, seed).view(*shape)


def rows(channels: int, seed: int) -> list[Tensor]:
    """A scale or a shift per state."""
    return [draw((channels,), torch.float64, seed + v) for v in range(3)]


def same(found: Tensor, expected: Tensor) -> bool:
    """Equal, NaN included; a zero's sign may differ."""
    equal = (found == expected) | (found.isnan() & expected.isnan())
    return found.dtype == expected.dtype and found.shape == expected.shape and bool(equal.all())


# ---- the products and their sums ------------------------------------------------------------------------------------

geometries = st.tuples(st.sampled_from([1, 2]), st.integers(0, 2), st.sampled_from([1, 2]))


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    kernel=st.sampled_from([(1, 1), (3, 3), (3, 1)]),
    geometry=geometries,
    dtype=all_dtypes,
    seed=seeds,
)
def test_products_are_the_convolutions_of_each_feature(
    backend: str,
    batch: int,
    channels: tuple[int, int, int],
    size: tuple[int, int],
    kernel: tuple[int, int],
    geometry: tuple[int, int, int],
    dtype: torch.dtype,
    seed: int,
) -> None:
    stride, padding, dilation = geometry
    if min(n + 2 * padding - dilation * (k - 1) for n, k in zip(size, kernel, strict=True)) < 1:
        return
    c1, c2, out = channels
    first, second = draw((batch, c1, *size), dtype, seed), draw((batch, c2, *size), dtype, seed + 1)
    weight = draw((out, c1 + c2, *kernel), dtype, seed + 2)
    how: Any = ((stride, stride), (padding, padding), (dilation, dilation))
    p_first, p_second, *sums = ops.masked_fuse(first, second, weight, *how)
    for p, x, w in ((p_first, first, weight[:, :c1]), (p_second, second, weight[:, c1:])):
        exact = F.conv2d(x.double(), w.double(), None, *how)
        terms = F.conv2d(x.double().abs(), w.double().abs(), None, *how)
        bound = of_product_sum(w[0].numel(), dtype) * terms + of_store(dtype) * exact.abs() + SMALLEST[dtype]
        assert p.dtype == dtype
        assert bool(((p.double() - exact).abs() <= bound).all())
    check_sums(sums, p_first, p_second)
    alone = ops.masked_fuse(first, None, weight[:, :c1].contiguous(), *how)
    assert same(alone[0], p_first)
    assert torch.equal(bits(alone[2]), bits(sums[0])), "the state of one feature has other bits when it runs alone"
    assert [t.shape for t in (alone[1], *alone[3:])] == [(0,)] * 3


def check_sums(sums: list[Tensor], p_first: Tensor, p_second: Tensor) -> None:
    """Against sums without rounding error; squares of float32 and less are exact in float64."""
    a, b = p_first.double(), p_second.double()
    count = math.prod(p_first.shape) // max(1, p_first.shape[1])
    for found, terms in (
        *zip(sums[0], (a, a * a), strict=True),
        *zip(sums[1], (b, b * b), strict=True),
        (sums[2], a * b),
    ):
        assert found.dtype == torch.float64
        for channel in range(p_first.shape[1]):
            values = terms[:, channel].flatten().tolist()
            bound = of_sum(count + 1) * math.fsum(map(abs, values))
            assert abs(float(found[channel]) - math.fsum(values)) <= bound


PLANES = [(2, 3, 1, 1), (1, 2, 31, 33), (3, 1, 17, 31), (1, 1, 64, 65), (2, 2, 90, 91), (0, 2, 4, 4), (2, 0, 4, 4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", PLANES)
def test_sums_of_planes_of_any_size(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Around the lanes, the parts and the blocks of the kernel."""
    p_first, p_second = draw(shape, dtype, 1), draw(shape, dtype, 2)
    run = CPP.masked_fuse_sums if backend == "cpp" else reference.masked_fuse_sums
    check_sums(run(p_first, p_second), p_first, p_second)


def test_features_may_have_any_strides(backend: str) -> None:
    first, second = draw((2, 4, 6, 8), torch.float32, 1), draw((2, 6, 8, 6), torch.float32, 2).transpose(2, 3)
    weight = draw((3, 10, 3, 3), torch.float32, 3)
    expected = ops.masked_fuse(first, second.contiguous(), weight, (1, 1), (1, 1))
    last = [x.to(memory_format=torch.channels_last) for x in (first, second, weight)]
    for found, wanted in zip(ops.masked_fuse(*last, (1, 1), (1, 1)), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)  # another algorithm of torch's
        assert found.is_contiguous() or backend == "reference"


# ---- the whole block: convolution, batch norm, ReLU -----------------------------------------------------------------


def scale_and_shift(norm: nn.BatchNorm2d, sums: Sequence[Tensor], count: int) -> tuple[list[Tensor], list[Tensor]]:
    """Batch norm's training mode from the five sums, by state."""
    first, second, cross = sums
    both = torch.stack([first[0] + second[0], first[1] + second[1] + 2 * cross])
    scales, shifts = [], []
    for total, squares in (both, first, second):
        mean = total / count
        scales.append(norm.weight * (squares / count - mean * mean + norm.eps).rsqrt())
        shifts.append(norm.bias - mean * scales[-1])
    return scales, shifts


@settings(max_examples=20, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    stride=st.sampled_from([1, 2]),
    relu=st.booleans(),
    seed=seeds,
)
def test_block_and_its_gradients_equal_torchs_modules(
    backend: str, channels: tuple[int, int, int], stride: int, relu: bool, seed: int
) -> None:
    """In float64: three passes through Conv2d and BatchNorm2d, the masked feature zero, each with its own gradients."""
    c1, c2, out = channels
    first, second, weight, gamma, beta = (
        draw(shape, torch.float64, seed + k).requires_grad_()
        for k, shape in enumerate([(2, c1, 7, 6), (2, c2, 7, 6), (out, c1 + c2, 3, 3), (out,), (out,)])
    )
    norm = nn.BatchNorm2d(out).double()
    norm.weight, norm.bias = nn.Parameter(gamma), nn.Parameter(beta)
    leaves = [first, second, weight, norm.weight, norm.bias]
    p_first, p_second, *sums = ops.masked_fuse(first, second, weight, (stride, stride), (1, 1))
    tables = scale_and_shift(norm, sums, p_first[:, 0].numel())
    outputs = ops.masked_fuse_norm(p_first, p_second, *tables, relu)
    for v, state in enumerate(STATES):
        inputs = (first if state != "second" else torch.zeros_like(first), second if state != "first" else 0 * second)
        expected = norm(F.conv2d(torch.cat(inputs, 1), weight, None, stride, 1))
        expected = expected.relu() if relu else expected
        assert_within(outputs[v], expected)
        grad = draw(expected.shape, torch.float64, seed + 9)
        found = torch.autograd.grad(outputs[v], leaves, grad, retain_graph=True, allow_unused=True)
        wanted = torch.autograd.grad(expected, leaves, grad, allow_unused=True)
        for name, ours, theirs in zip(("first", "second", "weight", "gamma", "beta"), found, wanted, strict=True):
            if name in STATES and state not in ("both", name):
                assert ours is None, "a masked feature was given a gradient"
            else:
                assert_within(ours, theirs)


def assert_within(found: Tensor, expected: Tensor) -> None:
    peak = float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=WHOLE * max(peak, 1.0))


def test_gradients_together_are_the_sum_of_the_states(backend: str) -> None:
    first, second, weight = (
        draw(shape, torch.float64, k).requires_grad_()
        for k, shape in enumerate([(1, 2, 5, 5), (1, 3, 5, 5), (4, 5, 3, 3)])
    )
    p_first, p_second, *_ = ops.masked_fuse(first, second, weight)
    outputs = ops.masked_fuse_norm(p_first, p_second, rows(4, 1), rows(4, 5))
    leaves = (first, second, weight)
    together = torch.autograd.grad(sum(y.sum() for y in outputs), leaves, retain_graph=True)
    apart = [
        torch.autograd.grad(y.sum(), leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        for y in outputs
    ]
    for total, *parts in zip(together, *apart, strict=True):
        assert_within(total, sum(parts))


@pytest.mark.parametrize("wanted", ["products", "sums", "first", "cross"])
def test_masked_fuse_by_finite_differences(backend: str, wanted: str) -> None:
    first, second, weight = (
        draw(shape, torch.float64, k).requires_grad_()
        for k, shape in enumerate([(2, 2, 4, 5), (2, 1, 4, 5), (3, 3, 3, 2)])
    )
    which = {"products": slice(0, 2), "sums": slice(2, 5), "first": slice(0, 1), "cross": slice(4, 5)}[wanted]

    def run(*leaves: Tensor) -> tuple[Tensor, ...]:
        return ops.masked_fuse(*leaves, (1, 2), (1, 0), (1, 1))[which]

    assert torch.autograd.gradcheck(run, (first, second, weight))


def test_masked_fuse_of_one_feature_by_finite_differences(backend: str) -> None:
    first, weight = draw((2, 2, 4, 5), torch.float64, 1).requires_grad_(), draw((3, 2, 3, 3), torch.float64, 2)
    assert torch.autograd.gradcheck(
        lambda x, w: ops.masked_fuse(x, None, w)[0::2][:2], (first, weight.requires_grad_())
    )


@pytest.mark.parametrize("relu", [False, True])
def test_masked_fuse_norm_by_finite_differences(backend: str, relu: bool) -> None:
    products = [draw((2, 3, 3, 2), torch.float64, k).requires_grad_() for k in (1, 2)]
    tables = [row.requires_grad_() for row in (*rows(3, 3), *rows(3, 7))]

    def run(p_first: Tensor, p_second: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
        return ops.masked_fuse_norm(p_first, p_second, tables[:3], tables[3:], relu)

    before = run(*products, *tables)
    assert min(float(y.detach().abs()[y != 0].min()) for y in before) > 1e-3, "an output lies at ReLU's kink"
    assert torch.autograd.gradcheck(run, (*products, *tables))


# ---- the compiled kernels against the reference, bit for bit where the order of operations is specified --------------

shapes = st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(1, 40), st.integers(1, 40))
some_kinds = st.sampled_from(["normal", "signs", "infinite", "wide"])


@settings(max_examples=80, deadline=None)
@given(shape=shapes, dtype=all_dtypes, kind=some_kinds, seed=seeds, given=st.tuples(*[st.booleans()] * 4))
def test_grad_equals_the_reference(
    shape: tuple[int, ...], dtype: torch.dtype, kind: str, seed: int, given: tuple[bool, ...]
) -> None:
    p, other, grad = draw(shape, dtype, seed, kind), draw(shape, dtype, seed + 1), draw(shape, dtype, seed + 2, kind)
    table = torch.stack(rows(shape[1], seed))
    arguments = (
        grad if given[0] else None,
        table[:2] if given[1] else None,
        table[2] if given[2] else None,
        p,
        other if given[3] else None,
    )
    assert same(CPP.masked_fuse_grad(*arguments), reference.masked_fuse_grad(*arguments))


@settings(max_examples=80, deadline=None)
@given(shape=shapes, dtype=all_dtypes, kind=some_kinds, seed=seeds, relu=st.booleans(), paired=st.booleans())
def test_norm_equals_the_reference(
    shape: tuple[int, ...], dtype: torch.dtype, kind: str, seed: int, relu: bool, paired: bool
) -> None:
    p_first, p_second = draw(shape, dtype, seed, kind), draw(shape, dtype, seed + 1, kind) if paired else None
    if p_first.numel() > 2:
        p_first.view(-1)[seed % 3] = math.nan
    arguments = (p_first, p_second, rows(shape[1], seed), rows(shape[1], seed + 3), relu)
    for found, expected in zip(CPP.masked_fuse_norm(*arguments), reference.masked_fuse_norm(*arguments), strict=True):
        assert same(found, expected)


@settings(max_examples=80, deadline=None)
@given(
    shape=shapes,
    dtype=all_dtypes,
    seed=seeds,
    relu=st.booleans(),
    paired=st.booleans(),
    given=st.tuples(*[st.booleans()] * 3),
)
def test_norm_backward_equals_the_reference(
    shape: tuple[int, ...], dtype: torch.dtype, seed: int, relu: bool, paired: bool, given: tuple[bool, ...]
) -> None:
    p_first, p_second = draw(shape, dtype, seed), draw(shape, dtype, seed + 1) if paired else None
    grads = [draw(shape, dtype, seed + 2 + v) if use else None for v, use in enumerate(given)]
    tables = (rows(shape[1], seed), rows(shape[1], seed + 3))
    found = CPP.masked_fuse_norm_backward(*grads, p_first, p_second, *tables, relu)
    expected = reference.masked_fuse_norm_backward(*grads, p_first, p_second, *tables, relu)
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        assert same(ours, theirs)
    # Sums, which the two add up in different orders; no term is larger than this.
    count = max(1, p_first.numel() // max(1, shape[1]))
    peak = max([1.0, *(float(x.abs().max()) for x in (p_first, p_second, *grads) if x is not None and x.numel())])
    for ours, theirs in zip(found[2:], expected[2:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2 * of_sum(count) * count * 2 * peak**2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_low_precision_is_read_and_written_as_torch_does(dtype: torch.dtype) -> None:
    patterns = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype).view(1, 1, 256, 256)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    found = CPP.masked_fuse_norm(patterns, None, [one] * 3, [zero] * 3, False)[1]
    assert same(found, patterns)
    # Back from float32: numbers of every size, and the halfway cases between neighbours. One channel each.
    finite = patterns.flatten()[patterns.flatten().isfinite()].float().sort().values
    exact = torch.cat([(finite[1:] + finite[:-1]) / 2, draw((20_000,), torch.float32, 3, "wide")])
    table = torch.stack([exact.double(), torch.zeros_like(exact, dtype=torch.float64)])
    p = torch.zeros(1, exact.numel(), 1, 1, dtype=dtype)
    assert same(CPP.masked_fuse_grad(None, table, None, p, None).flatten(), exact.to(dtype))


def test_gradients_may_have_any_strides() -> None:
    p, other = draw((2, 5, 9, 9), torch.float32, 1), draw((2, 5, 9, 9), torch.float32, 2)
    table, tables = torch.stack(rows(5, 1)), (rows(5, 1), rows(5, 4))
    for grad in (torch.ones(1).expand(2, 5, 9, 9), p.transpose(2, 3), p.to(memory_format=torch.channels_last)):
        expected = CPP.masked_fuse_grad(grad.contiguous(), table[:2], table[2], p, other)
        assert same(CPP.masked_fuse_grad(grad, table[:2], table[2], p, other), expected)
        expected = CPP.masked_fuse_norm_backward(grad.contiguous(), None, None, p, other, *tables, True)
        found = CPP.masked_fuse_norm_backward(grad, None, None, p, other, *tables, True)
        assert all(same(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_threads_gives_the_same_bits(dtype: torch.dtype, threads) -> None:
    shape = (2, 7, 83, 79)
    p, q, *grads = (draw(shape, dtype, seed) for seed in range(5))
    tables, table = (rows(7, 1), rows(7, 4)), torch.stack(rows(7, 9))
    results = []
    for count in (1, 2, 3, 3):
        threads(count)
        results.append(
            [
                *CPP.masked_fuse_sums(p, q),
                CPP.masked_fuse_grad(grads[0], table[:2], table[2], p, q),
                *CPP.masked_fuse_norm(p, q, *tables, True),
                *CPP.masked_fuse_norm_backward(*grads, p, q, *tables, True),
            ]
        )
    for first, other in itertools.pairwise(results):
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(first, other, strict=True))
