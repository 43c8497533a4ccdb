"""Small nets of the layers that compaction has to know, their channel groups written by hand, and the masked oracle."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastalter.altermoma import Entry, Layout
from fastalter.models.sparse_encoder import SiteBatchNorm, SparseBasicBlock, SparseSequential
from fastalter.models.spconv_border import ConvAlgo, spconv
from fastalter.structure.groups import FIXED, Axis, ChannelGroups, Count, stays

Places = list[tuple[str, int, Tensor]]
"""(tensor, axis, groups)."""


@dataclass
class Flags:
    """As much of a channel mask as compaction takes."""

    groups: ChannelGroups
    flat: Tensor


class Convs(nn.Module):
    """Depthwise, transposed (grouped or not), batch, group and layer norm, PReLU, two outputs that stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.act = nn.PReLU(6)
        self.up = nn.ConvTranspose2d(6, 8, 2, stride=2)
        self.up_norm = nn.GroupNorm(4, 8)
        self.split = nn.ConvTranspose2d(8, 12, 1, groups=4)
        self.layer_norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 2)
        self.register_buffer("order", torch.arange(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x)).relu()
        x = self.act(self.depthwise(x)) * (1 + self.order.view(1, -1, 1, 1))
        x = self.split(self.up_norm(self.up(x)).relu())
        return self.head(self.layer_norm(x.movedim(1, -1)).relu())  # type: ignore[no-any-return]


def convs() -> tuple[nn.Module, tuple[Tensor, ...], ChannelGroups]:
    sets = Sets({"stem": 6, "up": 4})
    stem, pairs, threes = sets["stem"], sets["up"].repeat_interleave(2), sets["up"].repeat_interleave(3)
    places = rows(stem, "stem.weight", "stem.bias", *norm("stem_norm"), "depthwise.weight", "depthwise.bias")
    places += rows(stem, "act.weight", "up.weight", "order")
    places += [("up.weight", 1, pairs), *rows(pairs, "up.bias", "up_norm.weight", "up_norm.bias", "split.weight")]
    places += rows(threes, "split.bias", "layer_norm.weight", "layer_norm.bias")
    places += columns(threes, "head.weight")
    counts = [
        Count("depthwise", "groups", stem),
        Count("up_norm", "num_groups", sets["up"]),
        Count("split", "groups", sets["up"]),
    ]
    net = Convs()
    return net, (torch.randn(2, 3, 6, 5),), sets.groups(net, places, counts, ["layer_norm"])


class Encoder(nn.Module):
    """torch's transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.layer = nn.TransformerEncoderLayer(8, 4, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)))  # type: ignore[no-any-return]


def encoder() -> tuple[nn.Module, tuple[Tensor, ...], ChannelGroups]:
    sets = Sets({"embed": 8, "layer.self_attn.heads": 4, "layer.linear1": 12})
    stream, hidden = sets["embed"], sets["layer.linear1"]
    heads = sets["layer.self_attn.heads"].repeat_interleave(2)
    attention = "layer.self_attn"
    places = rows(stream, "embed.weight", "embed.bias", f"{attention}.out_proj.weight", f"{attention}.out_proj.bias")
    places += rows(stream, *(f"layer.norm{i}.{last}" for i in (1, 2) for last in ("weight", "bias")))
    places += rows(stream, "layer.linear2.weight", "layer.linear2.bias")
    places += columns(stream, f"{attention}.in_proj_weight", "layer.linear1.weight", "head.weight")
    places += rows(heads.repeat(3), f"{attention}.in_proj_weight", f"{attention}.in_proj_bias")
    places += columns(heads, f"{attention}.out_proj.weight")
    places += rows(hidden, "layer.linear1.weight", "layer.linear1.bias") + columns(hidden, "layer.linear2.weight")
    counts = [Count(attention, "num_heads", sets["layer.self_attn.heads"])]
    net = Encoder()
    return net, (torch.randn(2, 7, 5),), sets.groups(net, places, counts, ["layer.norm1", "layer.norm2"])


class Tied(nn.Module):
    """One weight in two layers, and a norm without weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.norm = nn.LayerNorm(6, elementwise_affine=False)
        self.outer = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(self.inner(x)).relu()).relu()
        return self.outer(self.norm(x))  # type: ignore[no-any-return]


def tied() -> tuple[nn.Module, tuple[Tensor, ...], ChannelGroups]:
    """The second name of the shared weight is not among the axes; and the norm adds what a removed channel is not."""
    sets = Sets({"inner": 6})
    stream = sets["inner"]
    places = rows(stream, "inner.weight", "inner.bias", "first.weight", "first.bias", "second.bias")
    places += columns(stream, "first.weight", "outer.weight")
    net = Tied()
    return net, (torch.randn(5, 4),), sets.groups(net, places, [], ["norm"])


class Sparse(nn.Module):
    """Submanifold, strided and inverse sparse convolutions around a residual block, to a dense map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SparseSequential(spconv.SubMConv3d(3, 6, 3, padding=1, bias=False), SiteBatchNorm(6), nn.ReLU())
        self.block = SparseBasicBlock(6, "sites")
        self.down = SparseSequential(
            spconv.SparseConv3d(6, 5, 3, stride=2, padding=1, bias=False, indice_key="down"), SiteBatchNorm(5)
        )
        self.up = spconv.SparseInverseConv3d(5, 4, 3, bias=False, indice_key="down")
        self.head = nn.Linear(4, 2)
        for module in self.modules():
            if hasattr(module, "algo"):
                module.algo = ConvAlgo.Native

    def forward(self, features: Tensor, coords: Tensor) -> Tensor:
        x = spconv.SparseConvTensor(features, coords, [6, 6, 6], 1)
        x = self.up(self.down(self.block(self.stem(x))))
        return self.head(x.features.relu())  # type: ignore[no-any-return]


def sparse() -> tuple[nn.Module, tuple[Tensor, ...], ChannelGroups]:
    sets = Sets({"stem.0": 6, "block.conv1": 6, "down.0": 5, "up": 4})
    stem, inner, down, up = (sets[name] for name in ("stem.0", "block.conv1", "down.0", "up"))
    places = rows(stem, "stem.0.weight", *norm("stem.1"), "block.conv2.weight", *norm("block.bn2"))
    places += rows(inner, "block.conv1.weight", *norm("block.bn1")) + rows(down, "down.0.weight", *norm("down.1"))
    places += rows(up, "up.weight") + columns(up, "head.weight")
    places += [("block.conv1.weight", 4, stem), ("block.conv2.weight", 4, inner)]
    places += [("down.0.weight", 4, stem), ("up.weight", 4, down)]
    net = Sparse()
    cells = torch.randperm(216, generator=torch.Generator().manual_seed(0))[:40]
    coords = torch.stack([torch.zeros_like(cells), cells // 36, cells // 6 % 6, cells % 6], 1).int()
    return net, (torch.randn(40, 3), coords), sets.groups(net, places, [], [])


NETS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...], ChannelGroups]]] = {
    "convs": convs,
    "encoder": encoder,
    "tied": tied,
    "sparse": sparse,
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...], ChannelGroups]:
    """A net in eval mode and float64, with norms that do something, an input and its groups."""
    torch.manual_seed(seed)
    net, inputs, groups = NETS[name]()
    net = net.double().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
            if (
                isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm1d | nn.BatchNorm2d)
                and module.weight is not None
            ):
                module.weight.normal_()
                module.bias.normal_()
        for module in net.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.in_proj_bias.normal_()
            if hasattr(module, "algo"):
                module.weight.normal_(std=0.3)
    return net, tuple(x.double() if x.is_floating_point() else x for x in inputs), groups


def random_flags(groups: ChannelGroups, ratio: float, seed: int) -> Tensor:
    """bool [G]: about a share `ratio` of the groups leaves; a set may lose all of its own."""
    return torch.rand(groups.size, generator=torch.Generator().manual_seed(seed)) >= ratio


def zeroed(net: nn.Module, groups: ChannelGroups, kept: Tensor) -> nn.Module:
    """A copy of the masked network: every parameter slice of a removed group is zero, buffers are as they were."""
    copied = copy.deepcopy(net)
    parameters = dict(copied.named_parameters(remove_duplicate=False))
    for axis in groups.axes:
        gone = [i for i, g in enumerate(axis.groups.tolist()) if g != FIXED and not kept[g]]
        if axis.tensor in parameters:
            parameters[axis.tensor].data.index_fill_(axis.axis, torch.tensor(gone, dtype=torch.int64), 0)
    return copied


def regrouped(groups: ChannelGroups, kept: Tensor) -> ChannelGroups:
    """The groups of the compacted network; kept: bool [G], those that stayed."""
    number = kept.long().cumsum(0) - 1
    entries, offset = [], 0
    for entry in groups.layout.entries:
        size = int(kept[entry.offset : entry.offset + entry.size].sum())
        entries.append(Entry(entry.name, (size,), offset, size, entry.branch))
        offset += size

    def left(members: Tensor) -> Tensor:
        return number[members[stays(members, kept)]]

    return ChannelGroups(
        Layout(entries),
        [Axis(axis.tensor, axis.axis, left(axis.groups)) for axis in groups.axes],
        [],
        [Count(count.module, count.name, left(count.groups)) for count in groups.counts],
        groups.layer_norms,
        buffers=groups.buffers,
    )


class Sets:
    """Sets of groups, numbered one after the other."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.entries, self.members, offset = [], {}, 0
        for name, size in sizes.items():
            self.entries.append(Entry(name, (size,), offset, size, "fusion"))
            self.members[name] = torch.arange(offset, offset + size)
            offset += size

    def __getitem__(self, name: str) -> Tensor:
        return self.members[name]

    def groups(self, net: nn.Module, places: Places, counts: list[Count], layer_norms: list[str]) -> ChannelGroups:
        state = net.state_dict()
        return ChannelGroups(
            layout=Layout(self.entries),
            axes=[Axis(*place) for place in places],
            gates=[],
            counts=counts,
            layer_norms=layer_norms,
            shapes={name: tuple(state[name].shape) for name, _, _ in places},
            buffers=[name for name, _ in net.named_buffers()],
        )


def rows(groups: Tensor, *tensors: str) -> Places:
    return [(name, 0, groups) for name in tensors]


def columns(groups: Tensor, *tensors: str) -> Places:
    return [(name, 1, groups) for name in tensors]


def norm(path: str) -> list[str]:
    return [f"{path}.{last}" for last in ("weight", "bias", "running_mean", "running_var")]
