"""Trees of tensors: what a masked branch returns, and what it costs to keep."""

from __future__ import annotations

from collections import OrderedDict, namedtuple

import torch

from fastalter.fusion.tree import copy_of, map_tensors, tensors, zeros_of
from tests.altermoma.nets import Levels

Pair = namedtuple("Pair", "left right")


def tree() -> dict[str, object]:
    one = torch.ones(2, 3)
    return {
        "list": [one, "text", 7],
        "tuple": (one, None),
        "named": Pair(one, one),
        "ordered": OrderedDict(a=one),
        "data": Levels(one, one),
        "integers": torch.arange(6),
    }


def test_every_container_is_walked_and_rebuilt() -> None:
    doubled = map_tensors(tree(), lambda t: t * 2)
    assert [type(value) for value in doubled.values()] == [type(value) for value in tree().values()]
    assert doubled["list"][1:] == ["text", 7]
    assert sum(float(t.sum()) for t in tensors(doubled)) == 2 * sum(float(t.sum()) for t in tensors(tree()))
    assert len(list(tensors(tree()))) == 8


def test_sparse_tensors_keep_their_sites() -> None:
    from spconv.pytorch import SparseConvTensor

    sites = torch.tensor([[0, 1, 2, 3], [0, 3, 2, 1]], dtype=torch.int32)
    sparse = SparseConvTensor(torch.ones(2, 5), sites, [4, 4, 4], 1)
    zero = zeros_of({"x": sparse}, keep_integers=True)["x"]
    assert zero.features.shape == (2, 5)
    assert not zero.features.any()
    assert torch.equal(zero.indices, sites)
    assert sparse.features.all()


def test_zeros_take_no_memory_until_they_are_copied() -> None:
    feature = torch.ones(64, 64, dtype=torch.float64)
    zero = zeros_of(feature, keep_integers=True)
    assert zero.untyped_storage().nbytes() == 8
    copy = copy_of(zero)
    assert copy.is_contiguous()
    copy[0, 0] = 1  # a consumer may work in place
    assert not zero.any()


def test_integers_stay_where_they_are_wanted() -> None:
    sites = torch.arange(6)
    assert torch.equal(zeros_of(sites, keep_integers=True), sites)
    assert not zeros_of(sites, keep_integers=False).any()


def test_copies_keep_gradients_and_memory_format() -> None:
    x = torch.ones(2, 3, 4, 4, requires_grad=True)
    copy = copy_of(x.contiguous(memory_format=torch.channels_last))
    assert copy.is_contiguous(memory_format=torch.channels_last)
    copy.mul_(3).sum().backward()
    assert x.grad is not None
    assert bool((x.grad == 3).all())
