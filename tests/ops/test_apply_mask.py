"""apply_mask: every bit offset, every dense layout, parameters that require grad."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastalter import ops
from tests.ops.arenas import all_dtypes, bits, kinds, make, seeds, sizes


def random_mask(size: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """A mask of at least `size` bits that ends exactly where the format says, and its bits."""
    kept = np.random.default_rng(seed).random(64 * math.ceil(size / 64)) < 0.5
    return torch.from_numpy(np.packbits(kept, bitorder="little")), kept


@settings(max_examples=100, deadline=None)
@given(kind=kinds, size=sizes, offset=st.integers(0, 130), dtype=all_dtypes, seed=seeds)
def test_dropped_elements_become_zero_and_the_others_keep_their_bits(
    backend: str, kind: str, size: int, offset: int, dtype: torch.dtype, seed: int
) -> None:
    theta = make(kind, size, dtype, seed)
    mask, kept = random_mask(offset + size, seed)
    expected = torch.where(torch.from_numpy(kept[offset : offset + size]), theta, torch.zeros((), dtype=dtype))
    ops.apply_mask([theta], mask, [offset])
    assert torch.equal(bits(theta), bits(expected))


LAYOUTS = {
    "channels_last": lambda: torch.randn(6, 5, 3, 3).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(70, 41).t(),
    "permuted": lambda: torch.randn(3, 4, 5, 6, 7).permute(4, 0, 2, 1, 3),
    "scalar": lambda: torch.randn(()),
    "one_by_one": lambda: torch.randn(8, 16, 1, 1).to(memory_format=torch.channels_last),
    "half": lambda: torch.randn(9, 8, dtype=torch.float16).t(),
    "bfloat": lambda: torch.randn(2, 3, 4, dtype=torch.bfloat16).permute(2, 0, 1),
    "double": lambda: torch.randn(9, 8, dtype=torch.float64).t(),
    "large": lambda: torch.randn(300, 400).t(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_follow_row_major_order_in_any_layout(backend: str, layout: str) -> None:
    theta = LAYOUTS[layout]()
    mask, kept = random_mask(theta.numel() + 13, 3)
    expected = theta.clone() * torch.from_numpy(kept[13 : 13 + theta.numel()]).view(theta.shape)
    strides = theta.stride()
    ops.apply_mask([theta], mask, [13])
    assert torch.equal(theta, expected)
    assert theta.stride() == strides


def test_many_tensors_in_one_call_leave_their_neighbours_alone(backend: str) -> None:
    storage = torch.ones(100_000)
    parts = [storage[3:1000], storage[1001:90_000], storage[90_002:90_002], torch.ones(200, dtype=torch.bfloat16)]
    offsets = [0, 997, 5, 89_001]
    mask, kept = random_mask(89_996, 4)
    ops.apply_mask(parts, mask, offsets)
    assert torch.equal(parts[0], torch.from_numpy(kept[:997]).float())
    assert torch.equal(parts[1], torch.from_numpy(kept[997:89_996]).float())
    assert torch.equal(parts[3], torch.from_numpy(kept[89_001:89_201]).bfloat16())
    assert storage[[0, 1, 2, 1000, 90_000, 90_001, 99_999]].all()


def test_parameters_change_in_place_and_autograd_notices(backend: str) -> None:
    weight = torch.nn.Parameter(torch.ones(64))
    loss = (weight * weight).sum()
    version = weight._version
    ops.apply_mask([weight], torch.tensor([255, 0, 0, 0, 0, 0, 0, 0], dtype=torch.uint8), [0])
    assert weight.requires_grad
    assert weight.is_leaf
    assert weight.tolist() == [1.0] * 8 + [0.0] * 56
    assert weight._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
