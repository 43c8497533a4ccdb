"""Counted operations against arithmetic done by hand, and against dense convolutions of ones."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from fastalter.models.spconv_border import ConvAlgo, spconv
from fastalter.profiling import count_flops, count_kinds
from fastalter.profiling.sparse import connected_pairs


class Net(nn.Module):
    """A convolution in a container, attention over its cells, and a linear layer that is called twice."""

    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"conv": nn.Conv2d(3, 8, 3, padding=1)})
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 5)
        self.need_weights = need_weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cells = self.inner["conv"](x).relu().flatten(2).transpose(1, 2)
        mixed, _ = self.attention(cells, cells, cells, need_weights=self.need_weights)
        return self.last(mixed) + self.last(cells) + (mixed @ mixed.mT).sum()


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_dense_layers_and_attention(training: bool, need_weights: bool) -> None:
    """In eval mode torch would fuse the attention, out of the counter's sight."""
    net, x = Net(need_weights).train(training), torch.randn(2, 3, 4, 6)
    flops = count_flops(net, lambda: net(x))
    cells = 4 * 6
    conv = 2 * 2 * cells * 8 * 3 * 9
    attention = 2 * 2 * cells * 8 * 8 * 4 + 2 * 2 * 2 * cells * cells * 8
    last = 2 * (2 * 2 * cells * 8 * 5)
    assert flops["inner.conv"] == conv
    assert flops["attention"] == attention
    assert flops["last"] == last
    assert flops[""] == conv + attention + last + 2 * 2 * cells * cells * 8

    kinds = count_kinds(net, lambda: net(x))
    assert kinds["attention"]["attention"] == 2 * 2 * 2 * cells * cells * 8
    assert kinds["attention"][""] == 3 * 2 * 2 * cells * cells * 8
    assert kinds["dense"]["inner.conv"] == conv
    assert kinds["dense"][""] + kinds["attention"][""] == flops[""]
    assert not +kinds["sparse"]


def test_the_settings_of_attention_are_put_back() -> None:
    assert torch.backends.mha.get_fastpath_enabled()
    count_flops(nn.Identity(), lambda: None)
    assert torch.backends.mha.get_fastpath_enabled()


class Sparse(nn.Module):
    """Sparse convolutions one after the other."""

    def __init__(self, first: nn.Module, second: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: spconv.SparseConvTensor) -> spconv.SparseConvTensor:
        return self.first(x) if self.second is None else self.second(self.first(x))


KINDS = {
    "submanifold": (spconv.SubMConv3d, {"kernel_size": 3, "padding": 1}),
    "dilated": (spconv.SubMConv3d, {"kernel_size": 3, "padding": 2, "dilation": 2}),
    "strided": (spconv.SparseConv3d, {"kernel_size": 3, "stride": 2, "padding": 1}),
    "flat kernel": (spconv.SparseConv3d, {"kernel_size": (1, 1, 3), "stride": (1, 1, 2)}),
    "uneven": (spconv.SparseConv3d, {"kernel_size": (3, 2, 1), "stride": (2, 1, 3), "padding": (1, 0, 0)}),
}
SHAPE = (7, 6, 5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 40, 300])
def test_sparse_convolutions_count_the_pairs_that_a_dense_one_of_ones_sees(kind: str, count: int) -> None:
    make, arguments = KINDS[kind]
    net = Sparse(make(3, 4, bias=False, algo=ConvAlgo.Native, **arguments))
    sites = torch.randperm(2 * 7 * 6 * 5, generator=torch.Generator().manual_seed(count))[:count]
    coords = torch.stack([sites // 210, sites // 30 % 7, sites // 5 % 6, sites % 5], 1).int()
    x = spconv.SparseConvTensor(torch.randn(count, 3), coords, list(SHAPE), 2)
    flops = count_flops(net, lambda: net(x))
    occupied = torch.zeros(2, 1, *SHAPE, dtype=torch.float64)
    occupied[coords[:, 0], 0, coords[:, 1], coords[:, 2], coords[:, 3]] = 1
    settings = {name: arguments[name] for name in ("stride", "padding", "dilation") if name in arguments}
    kernel = net.first.kernel_size
    seen = nn.functional.conv3d(occupied, torch.ones(1, 1, *kernel, dtype=torch.float64), **settings)
    pairs = int((seen * occupied).sum() if net.first.subm else seen.sum())
    assert pairs > 0
    assert flops[""] == flops["first"] == 2 * 3 * 4 * pairs
    kinds = count_kinds(net, lambda: net(x))
    assert kinds["sparse"] == {"": 2 * 3 * 4 * pairs, "first": 2 * 3 * 4 * pairs}
    assert not +kinds["dense"]
    assert not +kinds["attention"]


def test_an_inverse_convolution_connects_what_its_convolution_did() -> None:
    down = spconv.SparseConv3d(2, 3, 3, stride=2, padding=1, bias=False, indice_key="down", algo=ConvAlgo.Native)
    up = spconv.SparseInverseConv3d(3, 5, 3, bias=False, indice_key="down", algo=ConvAlgo.Native)
    net = Sparse(down, up)
    coords = torch.tensor([[0, *site] for site in itertools.product(range(4), range(5), range(3))]).int()
    x = spconv.SparseConvTensor(torch.randn(60, 2), coords, [4, 5, 3], 1)
    flops = count_flops(net, lambda: net(x))
    assert flops["second"] * 2 * 3 == flops["first"] * 3 * 5 > 0


def test_a_transposed_convolution_spreads_every_site_over_the_kernel() -> None:
    net = Sparse(spconv.SparseConvTranspose3d(2, 3, 3, stride=2, padding=1, bias=False, algo=ConvAlgo.Native))
    coords = torch.tensor([[0, 1, 1, 1], [0, 1, 2, 1]]).int()
    x = spconv.SparseConvTensor(torch.randn(2, 2), coords, [4, 4, 4], 1)
    dense = nn.functional.conv_transpose3d(x.dense()[:, :1] * 0 + 1, torch.ones(1, 1, 3, 3, 3), stride=2, padding=1)
    assert list(dense.shape[2:]) == list(net(x).spatial_shape)
    assert count_flops(net, lambda: net(x))[""] == 2 * 2 * 3 * 2 * 27


def test_no_sites_connect_nothing() -> None:
    none = torch.empty(0, 3, dtype=torch.int32)
    settings = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    assert connected_pairs(none, none, (4, 4), **settings) == 0
