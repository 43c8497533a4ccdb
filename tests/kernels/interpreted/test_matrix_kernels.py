"""The matrix kernels and the sweeps around them against the reference in float64, under the strict interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import fastalter.triton_kernels as kernels
from fastalter.ops import reference
from fastalter.triton_kernels import gemm
from fastalter.triton_kernels.gemm import Tile
from tests.kernels.interpreted.strict import Strict

pytestmark = pytest.mark.usefixtures("strict")

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ACCUMULATES = {torch.float64: torch.float64}  # the others: float32
# What an element may differ by from the reference in float64 on the same inputs:
#   SIGMAS * sqrt(terms) * u(accumulator) * sum |products|   rounding of the sum: `terms` steps of at most u each, of
#                                                            random sign, so sqrt(terms) of them; 4 standard deviations
#   ROUNDINGS * u(dtype) * |value|                           one rounding at the store; a tie may fall to either side
# u is the unit roundoff, half of torch.finfo(dtype).eps.
SIGMAS, ROUNDINGS = 4.0, 1.01
SMALL = Tile(16, 16, 16, 4, 1)  # more tiles and more blocks of the sum than the interpreter's own


def unit(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def check(found: Tensor, exact: Tensor, magnitude: Tensor, terms: int, dtype: torch.dtype) -> None:
    """exact: float64, from the reference; magnitude: the same with the absolute values of all inputs."""
    assert found.shape == exact.shape
    assert found.is_contiguous()
    accumulated = SIGMAS * max(terms, 1) ** 0.5 * unit(ACCUMULATES.get(dtype, torch.float32)) * magnitude
    tolerance = accumulated + ROUNDINGS * unit(found.dtype) * (exact.abs() + accumulated)
    if dtype == torch.float16:
        tolerance += 2.0**-25  # half of the smallest subnormal
    wrong = (found.double() - exact).abs() > tolerance
    assert not found.isnan().any()
    assert not wrong.any(), (
        f"{int(wrong.sum())} of {wrong.numel()} elements are off, the first at {wrong.nonzero()[:1].tolist()}, "
        f"by up to {float(((found.double() - exact).abs() / tolerance).max()):.3g} times what is allowed"
    )


def normal(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def bits(kind: str, size: int, offset: int, seed: int = 7) -> Tensor:
    """A mask of whole 64-bit words that holds bits offset .. offset + size."""
    length = 8 * ((offset + size + 63) // 64)
    fill = {"none": 0, "all": 255}
    if kind in fill:
        return torch.full((length,), fill[kind], dtype=torch.uint8)
    return torch.randint(0, 256, (length,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def exact(op: str, *arguments: Any, absolute: bool = False) -> Any:
    """The reference's op in float64; tensors of weights and values are cast up, or made absolute, masks are not."""
    wide = []
    for argument in arguments:
        if isinstance(argument, Tensor) and argument.dtype != torch.uint8:
            argument = argument.double().abs() if absolute else argument.double()
        wide.append(argument)
    return getattr(reference, op)(*wide)


def against_reference(op: str, arguments: Sequence[Any], terms: int, dtype: torch.dtype) -> Tensor:
    """Launches the op, checks it, and returns what it gave."""
    found: Tensor = getattr(kernels, f"launch_{op}")(*arguments)
    assert found.dtype == dtype
    check(found, exact(op, *arguments), exact(op, *arguments, absolute=True), terms, dtype)
    return found


# ---- linear ---------------------------------------------------------------------------------------------------------

# leading dimensions, width in, width out, offset of the mask's first bit
LINEAR = {
    "one": ((1,), 1, 1, 0),
    "odd": ((2, 13), 17, 3, 13),
    "aligned": ((64,), 64, 64, 64),
    "crossing": ((5,), 130, 33, 63),
    "narrow": ((70,), 3, 66, 1),
    "many": ((3, 2, 20), 40, 20, 127),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LINEAR)
def test_linear_and_its_backward_apply_the_mask_to_each_weight_tile(case: str, dtype: torch.dtype) -> None:
    lead, of_in, of_out, offset = LINEAR[case]
    rows = torch.Size(lead).numel()
    x, g = normal(*lead, of_in, dtype=dtype, seed=1), normal(*lead, of_out, dtype=dtype, seed=2)
    weight, bias = normal(of_out, of_in, dtype=dtype, seed=3), normal(of_out, dtype=dtype, seed=4)
    mask = bits("random", weight.numel(), offset)
    against_reference("masked_linear", (x, weight, mask, offset, bias), of_in + 1, dtype)
    against_reference("masked_linear", (x, weight, mask, offset, None), of_in, dtype)
    against_reference("masked_linear_dgrad", (g, weight, mask, offset), of_out, dtype)
    against_reference("masked_linear_wgrad", (g, x, mask, offset), rows, dtype)


@pytest.mark.parametrize("kind", ["none", "all"])
def test_linear_with_nothing_or_everything_kept(kind: str) -> None:
    x, g, weight = (normal(*s, dtype=torch.float32, seed=i) for i, s in enumerate([(9, 35), (9, 18), (18, 35)]))
    mask = bits(kind, weight.numel(), 11)
    y = against_reference("masked_linear", (x, weight, mask, 11, None), 35, torch.float32)
    dx = against_reference("masked_linear_dgrad", (g, weight, mask, 11), 18, torch.float32)
    dw = against_reference("masked_linear_wgrad", (g, x, mask, 11), 9, torch.float32)
    assert all(t.any() == (kind == "all") for t in (y, dx, dw))


def test_a_dropped_weight_does_not_spread_its_infinity() -> None:
    x, weight = normal(4, 20, dtype=torch.float32, seed=1), normal(6, 20, dtype=torch.float32, seed=2)
    weight[::2] = float("inf")
    weight[1::2, 7] = float("nan")
    kept = torch.zeros(6, 20, dtype=torch.bool)
    kept[1::2] = True
    kept[:, 7] = False
    flat = torch.nn.functional.pad(kept.flatten(), (0, 128 - 120)).view(-1, 8).to(torch.int64)
    mask = (flat << torch.arange(8)).sum(1).to(torch.uint8)
    clean = weight.masked_fill(~kept, 0.0)
    images, taps = x[..., None, None], weight[..., None, None]
    for found, wanted in (
        (kernels.launch_masked_linear(x, weight, mask, 0, None), x @ clean.t()),
        (kernels.launch_masked_linear_dgrad(x[:, :6].contiguous(), weight, mask, 0), x[:, :6] @ clean),
        (kernels.launch_masked_conv2d(images, taps, mask, 0, None, *POINT)[..., 0, 0], x @ clean.t()),
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_linear_takes_strided_tensors_and_masks_that_start_or_end_within_a_word() -> None:
    x, weight = normal(35, 9, dtype=torch.float32, seed=1).t(), normal(35, 18, dtype=torch.float32, seed=2).t()
    for length in (83, 96):
        mask = torch.cat([bits("random", 1000, 0)[:3], bits("random", 640, 0)])[3 : 3 + length]
        against_reference("masked_linear", (x, weight, mask, 5, None), 35, torch.float32)


# ---- convolution ----------------------------------------------------------------------------------------------------

POINT = ((1, 1), (0, 0), (1, 1))
# batch, channels in, channels out, size, kernel, stride, padding, dilation, offset
CONV = {
    "one": (1, 1, 1, (1, 1), (1, 1), *POINT, 0),
    "same": (2, 17, 5, (9, 11), (3, 3), (1, 1), (1, 1), (1, 1), 13),
    "point": (2, 32, 17, (5, 7), (1, 1), *POINT, 5),
    "point, strided": (1, 16, 3, (7, 6), (1, 1), (2, 2), (0, 0), (1, 1), 0),
    "strided": (2, 3, 33, (11, 8), (3, 3), (2, 2), (1, 1), (1, 1), 63),
    "stem": (1, 3, 16, (15, 13), (7, 7), (2, 2), (3, 3), (1, 1), 1),
    "rectangular": (1, 4, 6, (10, 7), (3, 2), (2, 1), (1, 0), (1, 2), 9),
    "dilated": (1, 8, 9, (12, 12), (3, 3), (1, 1), (2, 2), (2, 2), 2),
    "uneven": (2, 5, 4, (9, 10), (2, 5), (3, 2), (0, 4), (2, 1), 64),
}


def conv_inputs(case: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Any, ...], int]:
    batch, of_in, of_out, size, kernel, *geometry, offset = CONV[case]
    x = normal(batch, of_in, *size, dtype=dtype, seed=1)
    weight = normal(of_out, of_in, *kernel, dtype=dtype, seed=2)
    bias = normal(of_out, dtype=dtype, seed=3)
    out = reference.masked_conv2d(x.double(), weight.double(), None, 0, None, *geometry)
    return x, weight, bias, normal(*out.shape, dtype=dtype, seed=4), tuple(geometry), offset


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CONV)
def test_convolution_and_its_backward(case: str, dtype: torch.dtype) -> None:
    x, weight, bias, g, geometry, offset = conv_inputs(case, dtype)
    taps = weight[0, 0].numel()
    mask = bits("random", weight.numel(), offset)
    size, pixels = list(x.shape[2:]), g.numel() // g.shape[1]
    terms = taps * x.shape[1] + 1
    against_reference("masked_conv2d", (x, weight, mask, offset, bias, *geometry), terms, dtype)
    against_reference("masked_conv2d_dgrad", (g, weight, mask, offset, size, *geometry), taps * g.shape[1], dtype)
    kernel = list(weight.shape[2:])
    against_reference("masked_conv2d_wgrad", (g, x, mask, offset, kernel, *geometry), pixels, dtype)


@pytest.mark.parametrize("kind", ["absent", "none", "all"])
def test_convolution_without_a_mask_and_with_a_plain_one(kind: str) -> None:
    x, weight, _, g, geometry, offset = conv_inputs("same", torch.float32)
    mask = None if kind == "absent" else bits(kind, weight.numel(), offset)
    y = against_reference("masked_conv2d", (x, weight, mask, offset, None, *geometry), 154, torch.float32)
    dgrad = (g, weight, mask, offset, [9, 11], *geometry)
    dx = against_reference("masked_conv2d_dgrad", dgrad, 45, torch.float32)
    wgrad = (g, x, mask, offset, [3, 3], *geometry)
    dw = against_reference("masked_conv2d_wgrad", wgrad, 198, torch.float32)
    assert all(t.any() == (kind != "none") for t in (y, dx, dw))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_part_of_a_weight_is_read_where_it_lies(dtype: torch.dtype) -> None:
    whole = normal(6, 25, 3, 3, dtype=dtype, seed=1)
    for part in (whole[:, 3:20], whole[:, 20:], whole.to(memory_format=torch.channels_last)[1:, :16]):
        g = normal(2, part.shape[0], 6, 5, dtype=dtype, seed=2)
        x = normal(2, part.shape[1], 6, 5, dtype=dtype, seed=3)
        x = x.to(memory_format=torch.channels_last)  # read in place at 16 channels, re-laid at 17 and 5
        geometry = ((1, 1), (1, 1), (1, 1))
        against_reference("masked_conv2d", (x, part, None, 0, None, *geometry), 9 * part.shape[1], dtype)
        against_reference("masked_conv2d_dgrad", (g, part, None, 0, [6, 5], *geometry), 9 * part.shape[0], dtype)


@pytest.mark.parametrize("tile", [SMALL, Tile(64, 32, 16, 4, 1)], ids=["small", "tall"])
def test_the_tiling_does_not_matter(tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "INTERPRETED", tile)
    x, weight, bias, g, geometry, offset = conv_inputs("strided", torch.float64)
    mask = bits("random", weight.numel(), offset)
    against_reference("masked_conv2d", (x, weight, mask, offset, bias, *geometry), 28, torch.float64)
    against_reference("masked_conv2d_dgrad", (g, weight, mask, offset, [11, 8], *geometry), 9 * 33, torch.float64)
    against_reference("masked_conv2d_wgrad", (g, x, mask, offset, [3, 3], *geometry), 48, torch.float64)
    x, weight = normal(37, 50, dtype=torch.float64, seed=5), normal(41, 50, dtype=torch.float64, seed=6)
    mask = bits("random", weight.numel(), 3)
    against_reference("masked_linear", (x, weight, mask, 3, None), 50, torch.float64)
    against_reference("masked_linear_dgrad", (x[:, :41].contiguous(), weight, mask, 3), 41, torch.float64)


def test_the_weight_gradient_is_summed_in_chunks_in_order(strict: Strict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "INTERPRETED", SMALL)
    g, x = normal(1, 5, 16, 16, dtype=torch.float32, seed=1), normal(1, 3, 16, 16, dtype=torch.float32, seed=2)
    count, chunk = gemm.splits(5, 9 * 16, 256, SMALL)
    assert count > 1
    assert count * chunk >= 256 > (count - 1) * chunk
    arguments = (g, x, None, 0, [3, 3], (1, 1), (1, 1), (1, 1))
    strict.any_order(lambda: against_reference("masked_conv2d_wgrad", arguments, 256, torch.float32), range(2))


@pytest.mark.parametrize("depth", [1, 7, 64, 65, 512, 1000, 32400, 10**6])
@pytest.mark.parametrize("rows", [1, 64, 256, 5000])
def test_chunks_cover_the_sum_once(rows: int, depth: int) -> None:
    for tile in (SMALL, Tile(128, 128, 64, 8, 3)):
        count, chunk = gemm.splits(rows, 720, depth, tile)
        assert 1 <= count <= gemm.MAX_SPLITS
        assert chunk % tile.depth == 0
        assert count * chunk >= depth > (count - 1) * chunk


@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 3, 0, 5)], ids=str)
def test_empty_tensors(shape: tuple[int, ...]) -> None:
    same = ((1, 1), (1, 1), (1, 1))
    x, weight = torch.zeros(shape), normal(4, 3, 3, 3, dtype=torch.float32, seed=1)
    mask = bits("random", weight.numel(), 0)
    y = kernels.launch_masked_conv2d(x, weight, mask, 0, None, *same)
    assert y.shape == (shape[0], 4, *shape[2:])
    assert kernels.launch_masked_conv2d_dgrad(y, weight, mask, 0, shape[2:], *same).shape == shape
    assert not kernels.launch_masked_conv2d_wgrad(y, x, mask, 0, (3, 3), *same).any()
    fused = kernels.launch_masked_fuse(x, x, normal(4, 6, 3, 3, dtype=torch.float32, seed=2), *same)
    assert [tuple(t.shape) for t in fused] == [tuple(y.shape), tuple(y.shape), (2, 4), (2, 4), (4,)]
    assert not any(sums.any() for sums in fused[2:])
    tables = [torch.ones(4, dtype=torch.float64)] * 3
    assert all(t.shape == y.shape for t in kernels.launch_masked_fuse_norm(y, y, tables, tables, True))
    *_, dscale, dshift = kernels.launch_masked_fuse_norm_backward(y, y, y, y, y, tables, tables, True)
    assert not dscale.any()
    assert not dshift.any()
    assert kernels.launch_masked_fuse_grad(y, None, None, y, y).shape == y.shape


def test_empty_rows_of_a_linear_layer() -> None:
    x, weight = torch.zeros(2, 0, 6), normal(4, 6, dtype=torch.float32, seed=1)
    mask = bits("all", 24, 0)
    y = kernels.launch_masked_linear(x, weight, mask, 0, None)
    assert y.shape == (2, 0, 4)
    assert kernels.launch_masked_linear_dgrad(y, weight, mask, 0).shape == x.shape
    found = kernels.launch_masked_linear_wgrad(y, x, mask, 0)
    assert found.shape == (4, 6)
    assert not found.any()


def test_more_pixels_than_32_bits_count_are_refused() -> None:
    x = torch.zeros(1).expand(1 << 10, 16, 1 << 10, 1 << 10)
    with pytest.raises(ValueError, match="matrix kernels take up to"):
        gemm.channels_last(x)


# ---- the fused convolution ------------------------------------------------------------------------------------------

# batch, channels of the first and the second feature, channels out, size, kernel, stride, padding, dilation
FUSE = {
    "one": (1, 1, 1, 1, (1, 1), (1, 1), *POINT),
    "same": (2, 17, 3, 5, (9, 11), (3, 3), (1, 1), (1, 1), (1, 1)),
    "aligned": (1, 16, 32, 33, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1)),
    "rectangular": (2, 3, 20, 17, (10, 7), (3, 2), (2, 1), (1, 0), (1, 2)),
}


def fuse_inputs(case: str, dtype: torch.dtype) -> tuple[Any, ...]:
    batch, of_first, of_second, of_out, size, kernel, *geometry = FUSE[case]
    first = normal(batch, of_first, *size, dtype=dtype, seed=1)
    second = normal(batch, of_second, *size, dtype=dtype, seed=2)
    return first, second, normal(of_out, of_first + of_second, *kernel, dtype=dtype, seed=3), *geometry


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", FUSE)
def test_masked_fuse_gives_both_products_and_the_sums_of_what_it_stored(case: str, dtype: torch.dtype) -> None:
    arguments = fuse_inputs(case, dtype)
    found = kernels.launch_masked_fuse(*arguments)
    wanted, magnitude = exact("masked_fuse", *arguments), exact("masked_fuse", *arguments, absolute=True)
    for p, q, m, feature in zip(found[:2], wanted[:2], magnitude[:2], arguments[:2], strict=True):
        assert p.dtype == dtype
        check(p, q, m, feature.shape[1] * arguments[2][0, 0].numel(), dtype)
    # Each sum against the float64 sum of the stored, rounded products.
    stored = exact("masked_fuse_sums", *found[:2])
    sizes = exact("masked_fuse_sums", *found[:2], absolute=True)
    for sums, q, m in zip(found[2:], stored, sizes, strict=True):
        assert sums.dtype == torch.float64
        check(sums, q, m, gemm.INTERPRETED.columns, dtype)


def test_the_sums_are_those_of_the_rounded_products() -> None:
    first, second, weight, *geometry = fuse_inputs("same", torch.bfloat16)
    found = kernels.launch_masked_fuse(first, second, weight, *geometry)
    unrounded = exact("masked_fuse", first, second, weight, *geometry)
    stored = exact("masked_fuse_sums", *found[:2])
    for sums, kept, exact_sums in zip(found[2:], stored, unrounded[2:], strict=True):
        assert (sums - kept).abs().max() < 0.1 * (exact_sums - kept).abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_depends_on_the_order_of_the_programs(dtype: torch.dtype, strict: Strict) -> None:
    first, second, weight, *geometry = fuse_inputs("same", dtype)
    p = strict.any_order(lambda: kernels.launch_masked_fuse(first, second, weight, *geometry), range(2))
    tables = [normal(weight.shape[0], dtype=torch.float64, seed=s) for s in range(6)]
    g = normal(*p[0].shape, dtype=dtype, seed=4)
    norm = (p[0], p[1], tables[:3], tables[3:], True)
    strict.any_order(lambda: kernels.launch_masked_fuse_norm_backward(g, g, g, *norm), range(2))
    mask = bits("random", weight.numel(), 3)
    strict.any_order(lambda: kernels.launch_masked_conv2d_wgrad(g, first, mask, 3, [3, 3], *geometry), range(2))
    strict.any_order(lambda: kernels.launch_masked_conv2d(first, weight[:, :17], None, 0, None, *geometry), range(2))


# ---- norm and gradients ---------------------------------------------------------------------------------------------

# batch, channels, size: a row of less than a block, of exactly one, of a block and a bit
NORM = {"one": (1, 1, (1, 1)), "odd": (2, 17, (9, 11)), "block": (1, 3, (32, 64)), "over": (2, 3, (41, 51))}


def norm_inputs(case: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """(products, scale, shift, gradients)."""
    batch, channels, size = NORM[case]
    full = [normal(batch, channels, *size, dtype=dtype, seed=s) for s in range(5)]
    tables = [normal(channels, dtype=torch.float64, seed=5 + s) for s in range(6)]
    return full[:2], tables[:3], tables[3:], full[2:]


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "affine"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", NORM)
def test_norm_of_three_states_is_the_references_to_the_bit(case: str, dtype: torch.dtype, relu: bool) -> None:
    products, scale, shift, _ = norm_inputs(case, dtype)
    products[0][0, 0, 0, 0] = float("nan")
    found = kernels.launch_masked_fuse_norm(*products, scale, shift, relu)
    for y, wanted in zip(found, reference.masked_fuse_norm(*products, scale, shift, relu), strict=True):
        assert y.dtype == dtype
        torch.testing.assert_close(y, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("given", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_backward_costs_only_the_states_that_are_given(dtype: torch.dtype, given: tuple[int, ...]) -> None:
    for case, relu in (("odd", True), ("over", False)):
        products, scale, shift, grads = norm_inputs(case, dtype)
        used = [grad if has else None for grad, has in zip(grads, given, strict=True)]
        found = kernels.launch_masked_fuse_norm_backward(*used, *products, scale, shift, relu)
        wanted = reference.masked_fuse_norm_backward(*used, *products, scale, shift, relu)
        for y, q in zip(found[:2], wanted[:2], strict=True):
            assert y.dtype == dtype
            torch.testing.assert_close(y, q, rtol=0, atol=0)
        # The tables: sums over all pixels of sizes that the absolute values bound.
        absolute = [[None if x is None else x.double().abs() for x in xs] for xs in (used, products)]
        bounds = reference.masked_fuse_norm_backward(*absolute[0], *absolute[1], scale, shift, False)
        for y, q, bound in zip(found[2:], wanted[2:], bounds[2:], strict=True):
            assert y.dtype == torch.float64
            check(y, q, bound, products[0][0, 0].numel(), dtype)


@pytest.mark.parametrize("given", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_of_a_product(dtype: torch.dtype, given: tuple[int, ...]) -> None:
    for case in ("odd", "over"):
        products, scale, shift, grads = norm_inputs(case, dtype)
        terms = (grads[0], torch.stack([scale[0], shift[0]]), scale[1])
        arguments = [term if has else None for term, has in zip(terms, given, strict=True)]
        found = kernels.launch_masked_fuse_grad(*arguments, *products)
        wanted = reference.masked_fuse_grad(*arguments, *products)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_feature_alone_is_bitwise_what_it_is_beside_another(dtype: torch.dtype) -> None:
    first, second, weight, *geometry = fuse_inputs("same", dtype)
    width = first.shape[1]
    pair = kernels.launch_masked_fuse(first, second, weight, *geometry)
    for which, (feature, half) in enumerate(((first, weight[:, :width]), (second, weight[:, width:]))):
        p, nothing, sums, *none = kernels.launch_masked_fuse(feature, None, half, *geometry)
        assert torch.equal(p, pair[which])
        assert torch.equal(sums, pair[2 + which])
        assert [t.numel() for t in (nothing, *none)] == [0, 0, 0]
    products, scale, shift, grads = norm_inputs("odd", dtype)
    for relu in (True, False):
        arguments = (products[0], None, scale, shift, relu)
        for run in ("masked_fuse_norm", "masked_fuse_norm_backward"):
            given = grads if run.endswith("backward") else []
            found = getattr(kernels, f"launch_{run}")(*given, *arguments)
            wanted = getattr(reference, run)(*given, *arguments)
            assert [t.shape for t in found] == [t.shape for t in wanted]
            assert torch.equal(found[0], wanted[0])
            assert torch.equal(found[1], wanted[1])
    table = torch.stack([scale[0], shift[0]])
    found = kernels.launch_masked_fuse_grad(grads[0], table, None, products[0], None)
    assert torch.equal(found, reference.masked_fuse_grad(grads[0], table, None, products[0], None))


def test_the_gradient_of_a_sum_is_expanded_and_still_fits() -> None:
    products, *_ = norm_inputs("odd", torch.float32)
    expanded = torch.ones(()).expand(products[0].shape)
    found = kernels.launch_masked_fuse_grad(expanded, None, None, *products)
    assert torch.equal(found, torch.ones_like(found))
    tables = [torch.ones(17, dtype=torch.float64)] * 3
    norm = (*products, tables, tables, True)
    found = kernels.launch_masked_fuse_norm_backward(expanded, None, expanded, *norm)
    wanted = reference.masked_fuse_norm_backward(expanded, None, expanded, *norm)
    assert all(torch.equal(y, q) for y, q in zip(found[:2], wanted[:2], strict=True))


def test_the_whole_backward_of_masked_fuse_is_autograds() -> None:
    """fastalter.ops.fuse composes masked_fuse_grad, dgrad and wgrad; here from the kernels, there by autograd."""
    first, second, weight, *geometry = fuse_inputs("same", torch.float64)
    leaves = [t.clone().requires_grad_() for t in (first, second, weight)]
    outputs = reference.masked_fuse(*leaves, *geometry)
    grads = [normal(*out.shape, dtype=torch.float64, seed=10 + i) for i, out in enumerate(outputs)]
    torch.autograd.backward(outputs, grads)
    p_first, p_second = (out.detach() for out in outputs[:2])
    dp = [
        kernels.launch_masked_fuse_grad(grads[0], grads[2], grads[4], p_first, p_second),
        kernels.launch_masked_fuse_grad(grads[1], grads[3], grads[4], p_second, p_first),
    ]
    for of_p, leaf, channels in zip(dp, leaves, (slice(0, 17), slice(17, None)), strict=False):
        dx = kernels.launch_masked_conv2d_dgrad(of_p, weight[:, channels], None, 0, leaf.shape[2:], *geometry)
        dw = kernels.launch_masked_conv2d_wgrad(of_p, leaf.detach(), None, 0, weight.shape[2:], *geometry)
        torch.testing.assert_close(dx, leaf.grad, rtol=1e-12, atol=1e-10)
        torch.testing.assert_close(dw, leaves[2].grad[:, channels], rtol=1e-12, atol=1e-10)
