"""Physically smaller weights: numpy and torch's own conversion as oracles, for both implementations, bit for bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from fastalter import ops
from fastalter.errors import MaskError
from fastalter.ops.reference.compaction import decompress_nm
from tests.ops.arenas import all_dtypes, bits, kinds, make, seeds, sizes

ALL = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def same(found: Tensor, expected: Tensor) -> bool:
    return found.dtype == expected.dtype and found.shape == expected.shape and torch.equal(bits(found), bits(expected))


def taken(weight: Tensor, kept: dict[int, Tensor]) -> Tensor:
    """What numpy takes, dim by dim, from the weight's bits."""
    array = bits(weight.contiguous()).numpy()
    for dim, index in kept.items():
        array = np.take(array, index.numpy(), axis=dim)
    return torch.from_numpy(array.copy(order="C")).view(weight.dtype)


def check_compaction(weights: list[Tensor], kept: list[dict[int, Tensor]]) -> None:
    found = ops.compact_channels(weights, kept)
    assert len(found) == len(weights)
    for small, weight, of_weight in zip(found, weights, kept, strict=True):
        assert small.is_contiguous()
        assert same(small, taken(weight, of_weight))
        assert small.numel() == 0 or small.data_ptr() != weight.data_ptr()


@st.composite
def weights_and_kept(draw: st.DrawFn) -> tuple[list[Tensor], list[dict[int, Tensor]]]:
    """A few weights of any shape and layout, at most two dims of each restricted: sorted, shuffled, repeated, empty."""
    weights, kept = [], []
    for _ in range(draw(st.integers(0, 4))):
        shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 5, 16, 33]), max_size=5))
        while math.prod(shape) > 50_000:
            shape[shape.index(max(shape))] = 2
        dtype, seed = draw(all_dtypes), draw(seeds)
        random = np.random.default_rng(seed)
        weight = make("normal", math.prod(shape), dtype, seed).view(shape)
        if draw(st.booleans()):
            weight = weight.permute(random.permutation(len(shape)).tolist())
        dims = random.permutation(weight.dim())[: draw(st.integers(0, 2))].tolist()
        of_weight = {}
        for dim in dims:
            width = weight.shape[dim]
            ways = {
                "all": np.arange(width),
                "half": np.sort(random.permutation(width)[: (width + 1) // 2]),
                "any": random.integers(0, width, random.integers(0, 2 * width)) if width else np.zeros(0),
                "none": np.zeros(0),
                "runs": np.flatnonzero(np.repeat(random.random(width // 9 + 1) < 0.5, 9)[:width]),
            }
            index = ways[draw(st.sampled_from(list(ways)))]
            of_weight[dim - (weight.dim() if draw(st.booleans()) else 0)] = torch.from_numpy(index.astype(np.int64))
        weights.append(weight)
        kept.append(of_weight)
    return weights, kept


@settings(max_examples=100, deadline=None)
@given(given=weights_and_kept())
def test_kept_channels_equal_numpys(backend: str, given: tuple[list[Tensor], list[dict[int, Tensor]]]) -> None:
    check_compaction(*given)


LAYOUTS = {
    "linear": ((300, 512), (0, 1)),
    "conv": ((64, 48, 3, 3), (0, 1)),
    "sparse conv KRSC": ((32, 3, 3, 3, 64), (0, -1)),
    "sparse conv RSCK": ((3, 3, 3, 64, 32), (-1, -2)),
    "norm": ((4097,), (0,)),
    "rows only": ((40, 3, 700), (0,)),
    "middle": ((3, 50, 2), (1,)),
    "all": ((70_001,), ()),
    "one long row": ((2, 50_000), (1,)),
    "long lines": ((2, 3, 30_000), (0,)),
}


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_a_network(backend: str, layout: str, dtype: torch.dtype) -> None:
    shape, dims = LAYOUTS[layout]
    weight = make("normal", math.prod(shape), dtype, 3).view(shape)
    random = np.random.default_rng(4)
    kept = {d: torch.from_numpy(np.sort(random.permutation(shape[d])[: shape[d] // 2])) for d in dims}
    check_compaction([weight], [kept])
    check_compaction([weight[1:]], [{dim: index[index < weight[1:].shape[dim]] for dim, index in kept.items()}])


def test_compaction_takes_parameters_and_many_tensors_at_once(backend: str, threads) -> None:
    weights = [torch.nn.Parameter(torch.randn(width, 40, 3, 3)) for width in range(1, 60)] + [torch.randn(100_000)]
    kept = [{1: torch.arange(0, 40, 3), 0: torch.arange(0, width, 2)} for width in range(1, 60)]
    for count in (1, 2, 3):
        threads(count)
        found = ops.compact_channels(weights, [*kept, {0: torch.arange(0, 100_000, 7)}])
        for small, weight, of_weight in zip(found, weights, kept, strict=False):
            assert not small.requires_grad
            assert same(small, taken(weight.detach(), of_weight))
    assert ops.compact_channels([], []) == []


def packed(dense: Tensor) -> tuple[np.ndarray, Tensor]:
    present = bits(dense).numpy() != 0
    padded = np.zeros(8 * math.ceil(len(present) / 64), dtype=np.uint8)
    filled = np.packbits(present, bitorder="little")
    padded[: len(filled)] = filled
    return padded, dense[torch.from_numpy(present)]


@settings(max_examples=150, deadline=None)
@given(kind=kinds, size=sizes, dtype=all_dtypes, seed=seeds, density=st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
def test_packing_keeps_every_bit(
    backend: str, kind: str, size: int, dtype: torch.dtype, seed: int, density: float
) -> None:
    dense = make(kind, size, dtype, seed)
    dense[torch.from_numpy(np.random.default_rng(seed).random(size) >= density)] = 0.0
    mask, values = ops.pack_sparse(dense)
    expected_mask, expected_values = packed(dense)
    assert np.array_equal(mask.numpy(), expected_mask)
    assert same(values, expected_values)
    assert same(ops.unpack_sparse(mask, values, size), dense)


@pytest.mark.parametrize("dtype", ALL)
def test_zeros_of_both_signs_nan_and_denormals_survive(backend: str, dtype: torch.dtype) -> None:
    numbers = torch.tensor([0.0, -0.0, math.nan, -math.nan, math.inf, -math.inf, 1.0], dtype=dtype)
    patterns = torch.tensor([1, 2, -1, 3], dtype=bits(numbers).dtype).view(dtype)  # denormals, a NaN with a payload
    dense = torch.cat([numbers, patterns, torch.zeros(60, dtype=dtype), numbers])
    mask, values = ops.pack_sparse(dense)
    assert values.numel() == 6 + 4 + 6  # all but the three +0.0 and the padding between
    assert same(ops.unpack_sparse(mask, values, dense.numel()), dense)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4096, 4097, 70_000])
def test_nothing_and_everything(backend: str, size: int, value: float) -> None:
    dense = torch.full((size,), value)
    mask, values = ops.pack_sparse(dense)
    assert values.numel() == (size if value else 0)
    assert same(ops.unpack_sparse(mask, values, size), dense)


def test_packing_at_any_alignment(backend: str) -> None:
    storage = make("zeros", 500, torch.float32, 7)
    mask_room = torch.zeros(100, dtype=torch.uint8)
    for begin in range(18):
        dense = storage[begin : begin + 300]
        mask, values = ops.pack_sparse(dense)
        room = mask_room[begin : begin + mask.numel()].copy_(mask)
        assert same(ops.unpack_sparse(room, values, 300), dense)


def test_padding_bits_do_not_count(backend: str) -> None:
    mask = torch.full((8,), 255, dtype=torch.uint8)
    assert ops.unpack_sparse(mask, torch.ones(5), 5).tolist() == [1.0] * 5
    mask[1:] = 255
    assert ops.unpack_sparse(mask.repeat(2), torch.arange(69.0), 69).tolist() == list(range(69))
    with pytest.raises(MaskError, match=r"^unpack_sparse: the mask has 5 bits set, but there are 64 values$"):
        ops.unpack_sparse(mask, torch.ones(64), 5)


def test_packing_by_any_number_of_threads(threads) -> None:
    dense = make("zeros", 300_007, torch.float32, 11)
    mask, values = packed(dense)
    for count in (1, 2, 3, 3):
        threads(count)
        found_mask, found_values = ops.pack_sparse(dense)
        assert np.array_equal(found_mask.numpy(), mask)
        assert same(found_values, values)
        assert same(ops.unpack_sparse(found_mask, found_values, dense.numel()), dense)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    kind=kinds,
    seed=seeds,
    density=st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]),
)
def test_compression_equals_torchs(
    backend: str, rows: int, columns: int, dtype: torch.dtype, kind: str, seed: int, density: float
) -> None:
    """Also of groups with too many nonzeros, for which torch's formulas decide what stays."""
    shape = (32 * rows, 32 * columns)
    dense = make(kind, math.prod(shape), dtype, seed)
    dense[torch.from_numpy(np.random.default_rng(seed).random(dense.numel()) >= density)] = 0.0
    dense = dense.view(shape)
    expected = sparse_semi_structured_from_dense_cutlass(dense)
    for found, wanted in zip(ops.compress_nm(dense), expected, strict=True):
        assert same(found, wanted)
    turned = dense.t().contiguous().t()  # the wrapper takes any strides
    assert all(same(a, b) for a, b in zip(ops.compress_nm(turned), expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_compression_of_a_24_matrix_loses_nothing(backend: str, dtype: torch.dtype, threads) -> None:
    group, keep = (2, 1) if dtype == torch.float32 else (4, 2)
    random = np.random.default_rng(0)
    order = torch.from_numpy(random.random((256, 512 // group, group)).argsort(-1))
    # Of few bits: torch takes float32 back to dense in halves, and quiets what looks like a NaN among them.
    dense = make("normal", 256 * 512, torch.bfloat16, 1).to(dtype).view(256, 512) * (order < keep).view(256, 512)
    for count in (1, 2, 3):
        threads(count)
        values, metadata = ops.compress_nm(dense)
        assert torch.equal(sparse_semi_structured_to_dense_cutlass(values, metadata), dense)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=seeds,
)
def test_decompression_gives_every_bit_back(rows: int, columns: int, dtype: torch.dtype, seed: int) -> None:
    """Of matrices that fit the pattern, whatever bits they hold: NaNs too, which torch's own conversion changes."""
    group, keep = (2, 1) if dtype == torch.float32 else (4, 2)
    random = np.random.default_rng(seed)
    shape = (32 * rows, 32 * columns)
    words = torch.from_numpy(random.integers(0, 256, (shape[0], shape[1] * dtype.itemsize), dtype=np.uint8))
    dense = words.view(dtype)
    dense = torch.where(dense == 0, 1.0, dense)  # -0.0 is none of the nonzeros that compression keeps
    order = torch.from_numpy(random.random((shape[0], shape[1] // group, group)).argsort(-1))
    dense[(order >= random.integers(0, keep + 1)).view(shape)] = 0.0
    assert same(decompress_nm(*ops.compress_nm(dense)), dense)


@pytest.mark.parametrize("shape", [(0, 32), (32, 0)])
def test_compression_of_nothing(backend: str, shape: tuple[int, int]) -> None:
    values, metadata = ops.compress_nm(torch.zeros(shape))
    assert values.shape == (shape[0], shape[1] // 2)
    assert metadata.shape == (shape[0], shape[1] // 8)
