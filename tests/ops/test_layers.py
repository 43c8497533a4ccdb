"""masked_linear and masked_conv2d: torch's layers on a weight masked by numpy, in float64, and their gradients.

On the CPU the reference serves them, so there is one implementation here; the kernels have tests of their own. The
wrappers call it as it is, and torch differentiates it; through the dispatcher, as on a GPU, the backward is our own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastalter import ops
from tests.ops.arenas import all_dtypes, make, seeds
from tests.ops.tolerances import SMALLEST, of_product_sum, of_store

sides = st.integers(3, 8)


@pytest.fixture(params=["wrapper", "dispatcher"], scope="module")
def linear(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    if request.param == "wrapper":
        return ops.masked_linear
    return lambda x, weight, mask, offset=0, bias=None: torch.ops.fastalter.masked_linear(x, weight, mask, offset, bias)


@pytest.fixture(params=["wrapper", "dispatcher"], scope="module")
def conv2d(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    if request.param == "wrapper":
        return ops.masked_conv2d

    def dispatched(x: Tensor, weight: Tensor, mask: Tensor, offset: int = 0, bias: Any = None, *how: Any) -> Tensor:
        geometry = how or ((1, 1), (0, 0), (1, 1))
        return torch.ops.fastalter.masked_conv2d(x, weight, mask, offset, bias, *geometry)

    return dispatched


def drawn_mask(bits: int, offset: int, seed: int) -> tuple[Tensor, Tensor]:
    """A packed mask that ends with the weight's last bit, or soon after, and the weight's flags."""
    kept = np.random.default_rng(seed).random(offset + bits) < 0.5
    mask = torch.from_numpy(np.packbits(kept, bitorder="little"))
    return mask, torch.from_numpy(kept[offset:])


def draw(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return make("normal", math.prod(shape), dtype, seed).view(shape)


def assert_like(found: Tensor, run: Callable[..., Tensor], operands: list[Tensor], terms: int) -> None:
    """`found` is what `run` makes of the operands in float64, but for the roundings of a sum of `terms` products."""
    exact = run(*(x.double() for x in operands))
    magnitude = run(*(x.double().abs() for x in operands))
    bound = of_product_sum(terms, found.dtype) * magnitude + of_store(found.dtype) * exact.abs() + SMALLEST[found.dtype]
    assert found.shape == exact.shape
    assert bool(((found.double() - exact).abs() <= bound).all())


def differentiate(run: Callable[..., Tensor], operands: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.detach().clone().requires_grad_() for x in operands]
    return torch.autograd.grad(run(*leaves), leaves, grad)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.lists(st.integers(0, 4), min_size=0, max_size=2),
    width=st.integers(1, 40),
    out=st.integers(1, 20),
    offset=st.integers(0, 70),
    dtype=all_dtypes,
    biased=st.booleans(),
    seed=seeds,
)
def test_linear_is_torchs_on_the_masked_weight(
    linear: Callable[..., Tensor],
    batch: list[int],
    width: int,
    out: int,
    offset: int,
    dtype: torch.dtype,
    biased: bool,
    seed: int,
) -> None:
    x, weight = draw((*batch, width), dtype, seed), draw((out, width), dtype, seed + 1)
    bias = [draw((out,), dtype, seed + 2)] if biased else []
    mask, kept = drawn_mask(weight.numel(), offset, seed)
    masked = torch.where(kept.view(out, width), weight, 0.0)

    def run(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        return linear(x, weight, mask, offset, *bias)

    assert_like(run(x, weight, *bias), F.linear, [x, masked, *bias], width + 1)
    grad = draw((*batch, out), dtype, seed + 3)
    of_x, of_weight, *of_bias = differentiate(run, [x, weight, *bias], grad)
    assert_like(of_x, torch.matmul, [grad, masked], out)
    rows = math.prod(batch)
    flat = [grad.reshape(rows, out), x.reshape(rows, width)]
    assert_like(of_weight, lambda g, x: (g.t() @ x) * kept.view(out, width), flat, rows)
    assert not of_weight[~kept.view(out, width)].any()
    for found in of_bias:
        assert_like(found, lambda g: g.sum(0), flat[:1], rows)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 6)),
    size=st.tuples(sides, sides),
    kernel=st.sampled_from([(1, 1), (3, 3), (1, 3), (2, 2)]),
    geometry=st.tuples(st.integers(1, 2), st.integers(0, 2), st.integers(1, 2)),
    offset=st.integers(0, 70),
    dtype=all_dtypes,
    seed=seeds,
)
def test_conv2d_is_torchs_on_the_masked_weight(
    conv2d: Callable[..., Tensor],
    batch: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: tuple[int, int],
    geometry: tuple[int, int, int],
    offset: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    stride, padding, dilation = geometry
    if min(n + 2 * padding - dilation * (k - 1) for n, k in zip(size, kernel, strict=True)) < 1:
        return
    width, out = channels
    x, weight = draw((batch, width, *size), dtype, seed), draw((out, width, *kernel), dtype, seed + 1)
    bias = draw((out,), dtype, seed + 2)
    mask, kept = drawn_mask(weight.numel(), offset, seed)
    kept = kept.view(weight.shape)
    masked = torch.where(kept, weight, 0.0)
    how: Any = ((stride, stride), (padding, padding), (dilation, dilation))

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return conv2d(x, weight, mask, offset, bias, *how)

    found = run(x, weight, bias)
    assert_like(found, lambda x, w, b: F.conv2d(x, w, b, *how), [x, masked, bias], width * math.prod(kernel) + 1)
    grad = draw(tuple(found.shape), dtype, seed + 3)
    of_x, of_weight, of_bias = differentiate(run, [x, weight, bias], grad)
    assert_like(
        of_x,
        lambda g, w: torch.nn.grad.conv2d_input(x.shape, w, g, *how),  # type: ignore[arg-type]
        [grad, masked],
        out * math.prod(kernel),
    )
    assert_like(
        of_weight,
        lambda g, x: torch.nn.grad.conv2d_weight(x, weight.shape, g, *how) * kept,  # type: ignore[arg-type]
        [grad, x],
        grad[:, 0].numel(),
    )
    assert_like(of_bias, lambda g: g.sum((0, 2, 3)), [grad], grad[:, 0].numel())


def test_gradients_are_those_of_linear(linear: Callable[..., Tensor]) -> None:
    """By finite differences in float64."""
    x, weight, bias = (draw(shape, torch.float64, 5).requires_grad_() for shape in ((3, 7), (4, 7), (4,)))
    mask, _ = drawn_mask(28, 3, 1)
    assert torch.autograd.gradcheck(lambda *given: linear(*given[:2], mask, 3, given[2]), (x, weight, bias))


def test_gradients_are_those_of_conv2d(conv2d: Callable[..., Tensor]) -> None:
    shapes = ((2, 3, 5, 4), (4, 3, 3, 3), (4,))
    x, weight, bias = (draw(shape, torch.float64, 6).requires_grad_() for shape in shapes)
    mask, _ = drawn_mask(weight.numel(), 9, 2)
    how = ((2, 1), (1, 1), (1, 1))
    assert torch.autograd.gradcheck(lambda x, w, b: conv2d(x, w, mask, 9, b, *how), (x, weight, bias))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_masked_weight_counts_as_zero_whatever_it_holds(poison: float) -> None:
    weight, kernel = torch.full((2, 8), poison), torch.full((1, 2, 2, 2), poison)
    weight[0], kernel[0, 0] = 1.0, 1.0
    mask = torch.tensor([0xFF, 0x00], dtype=torch.uint8)
    assert ops.masked_linear(torch.ones(3, 8), weight, mask).tolist() == [[8.0, 0.0]] * 3
    mask = torch.tensor([0x0F], dtype=torch.uint8)
    assert ops.masked_conv2d(torch.ones(1, 2, 2, 2), kernel, mask).flatten().tolist() == [4.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precisions_accumulate_in_float32(dtype: torch.dtype) -> None:
    """1 + 4096 times 2^-11: each addition alone would be lost in either dtype."""
    x, weight = torch.ones(1, 4097, dtype=dtype), torch.full((1, 4097), 2.0**-11, dtype=dtype)
    weight[0, 0] = 1.0
    mask = torch.full((513,), 255, dtype=torch.uint8)
    assert ops.masked_linear(x, weight, mask).item() == 3.0
    square = ops.masked_conv2d(x.view(1, -1, 1, 1), weight.view(1, -1, 1, 1), mask)
    assert square.item() == 3.0


def test_all_pruned_and_empty(linear: Callable[..., Tensor], conv2d: Callable[..., Tensor]) -> None:
    mask = torch.zeros(64, dtype=torch.uint8)
    x, weight = torch.randn(3, 8).requires_grad_(), torch.randn(4, 8).requires_grad_()
    output = linear(x, weight, mask)
    assert not output.any()
    assert not any(grad.any() for grad in torch.autograd.grad(output.sum(), (x, weight)))
    assert linear(x[:0], weight, mask).shape == (0, 4)
    assert conv2d(torch.randn(0, 2, 4, 4), torch.randn(3, 2, 3, 3), mask).shape == (0, 3, 2, 2)
