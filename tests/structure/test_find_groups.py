"""Channel groups of small networks, against what a person reads off their code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastalter.errors import ModelError
from fastalter.fusion import adapt
from fastalter.structure import FIXED, ChannelGroups, find_groups


class Net(nn.Module):
    """Layers by name, and a forward written out in the test."""

    def __init__(self, run: Callable[..., Any], **layers: nn.Module | nn.Parameter | int) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = run

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def image(channels: int = 3) -> Tensor:
    return torch.randn(1, channels, 6, 6, generator=torch.Generator().manual_seed(0))


def sets(groups: ChannelGroups) -> dict[str, int]:
    return {entry.name: entry.size for entry in groups.layout.entries}


def at(groups: ChannelGroups, tensor: str, axis: int) -> list[int]:
    found = [a.groups.tolist() for a in groups.axes if (a.tensor, a.axis) == (tensor, axis)]
    return found[0] if found else []


def reasons(groups: ChannelGroups) -> dict[str, str]:
    return {kept.layer: kept.reason for kept in groups.kept}


def conv(i: int, o: int, **kwargs: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, 3, padding=1, **kwargs)


def test_a_chain_prunes_rows_norm_and_columns_together():
    net = Net(lambda n, x: n.b(F.relu(n.norm(n.a(x)))), a=conv(3, 4), norm=nn.BatchNorm2d(4), b=conv(4, 2))
    groups = find_groups(net, image())
    assert sets(groups) == {"a": 4}
    for tensor, axis in [("a.weight", 0), ("a.bias", 0), ("norm.weight", 0), ("norm.bias", 0), ("norm.running_var", 0)]:
        assert at(groups, tensor, axis) == [0, 1, 2, 3]
    assert at(groups, "b.weight", 1) == [0, 1, 2, 3]
    assert at(groups, "b.weight", 0) == at(groups, "a.weight", 1) == []
    assert reasons(groups) == {"b": "it leaves the network, in Net"}
    assert groups.buffers == ["norm.running_mean", "norm.running_var"]
    assert groups.shapes["b.weight"] == (2, 4, 3, 3)


def test_a_gate_stands_behind_the_norm_and_else_behind_the_layer():
    net = Net(
        lambda n, x: n.c(F.relu(n.b(F.relu(n.norm(n.a(x)))))),
        a=conv(3, 4),
        norm=nn.BatchNorm2d(4),
        b=conv(4, 5),
        c=conv(5, 2),
    )
    gates = {gate.weight: gate for gate in find_groups(net, image()).gates}
    assert set(gates) == {"norm.weight", "b.weight"}
    assert (gates["norm.weight"].bias, gates["norm.weight"].groups.tolist()) == ("norm.bias", [0, 1, 2, 3])
    assert (gates["b.weight"].bias, gates["b.weight"].groups.tolist()) == ("b.bias", [4, 5, 6, 7, 8])


def test_a_norm_is_no_gate_where_something_else_sees_the_channels_before_it():
    def run(n: Any, x: Tensor) -> Tensor:
        y = n.a(x)
        return n.b(n.norm(y) + y)

    net = Net(run, a=conv(3, 4), norm=nn.BatchNorm2d(4), b=conv(4, 2))
    assert [gate.weight for gate in find_groups(net, image()).gates] == ["a.weight"]


def test_dense_blocks_gate_each_channel_behind_every_norm_that_sees_it():
    def run(n: Any, x: Tensor) -> Tensor:
        a = n.a(x)
        b = n.b(F.relu(n.norm1(a)))
        return n.c(F.relu(n.norm2(torch.cat([a, b], 1))))

    net = Net(run, a=conv(3, 2), norm1=nn.BatchNorm2d(2), b=conv(2, 3), norm2=nn.BatchNorm2d(5), c=conv(5, 2))
    groups = find_groups(net, image())
    assert {g.weight: g.groups.tolist() for g in groups.gates} == {
        "norm1.weight": [0, 1],
        "norm2.weight": [0, 1, 2, 3, 4],
    }
    assert at(groups, "c.weight", 1) == [0, 1, 2, 3, 4]


def test_a_residual_sum_joins_its_producers_and_gates_each_once():
    def run(n: Any, x: Tensor) -> Tensor:
        x = F.relu(n.n1(n.a(x)))
        return n.c(F.relu(x + n.n2(n.b(x))))

    net = Net(run, a=conv(3, 4), n1=nn.BatchNorm2d(4), b=conv(4, 4), n2=nn.BatchNorm2d(4), c=conv(4, 2))
    groups = find_groups(net, image())
    assert sets(groups) == {"a": 4}
    assert at(groups, "b.weight", 0) == at(groups, "b.weight", 1) == at(groups, "c.weight", 1) == [0, 1, 2, 3]
    assert sorted(gate.weight for gate in groups.gates) == ["n1.weight", "n2.weight"]


def test_a_concatenation_keeps_its_parts_apart():
    net = Net(lambda n, x: n.c(torch.cat([n.a(x), x, n.b(x)], 1)), a=conv(3, 2), b=conv(3, 4), c=conv(9, 2))
    groups = find_groups(net, image())
    assert sets(groups) == {"a": 2, "b": 4}
    assert at(groups, "c.weight", 1) == [0, 1, FIXED, FIXED, FIXED, 2, 3, 4, 5]


def test_a_grouped_convolution_couples_the_same_channel_of_every_group():
    net = Net(lambda n, x: n.c(n.b(n.a(x))), a=conv(3, 4), b=conv(4, 6, groups=2), c=conv(6, 2))
    groups = find_groups(net, image())
    assert at(groups, "a.weight", 0) == [0, 1, 0, 1]
    assert at(groups, "b.weight", 1) == [0, 1]
    assert at(groups, "b.weight", 0) == at(groups, "c.weight", 1) == [2, 3, 4, 2, 3, 4]
    assert not groups.counts


def test_a_depthwise_convolution_passes_channels_and_counts_its_groups():
    net = Net(lambda n, x: n.c(n.b(n.a(x))), a=conv(3, 4), b=conv(4, 4, groups=4), c=conv(4, 2))
    groups = find_groups(net, image())
    assert sets(groups) == {"a": 4}
    assert at(groups, "b.weight", 0) == [0, 1, 2, 3]
    assert [(c.module, c.name, c.groups.tolist()) for c in groups.counts] == [("b", "groups", [0, 1, 2, 3])]
    assert [gate.weight for gate in groups.gates] == ["a.weight"]


def test_a_transposed_convolution_has_its_axes_the_other_way_round():
    net = Net(lambda n, x: n.c(n.b(n.a(x))), a=conv(3, 4), b=nn.ConvTranspose2d(4, 5, 2, stride=2), c=conv(5, 2))
    groups = find_groups(net, image())
    assert at(groups, "b.weight", 0) == [0, 1, 2, 3]
    assert at(groups, "b.weight", 1) == at(groups, "b.bias", 0) == [4, 5, 6, 7, 8]
    assert {g.weight: g.axis for g in groups.gates} == {"a.weight": 0, "b.weight": 1}


def test_squeeze_and_excite_follows_its_channels():
    def run(n: Any, x: Tensor) -> Tensor:
        x = n.a(x)
        return n.c(x * torch.sigmoid(n.up(F.silu(n.down(x.mean((2, 3))))))[..., None, None])

    net = Net(run, a=conv(3, 4), down=nn.Linear(4, 2), up=nn.Linear(2, 4), c=conv(4, 2))
    groups = find_groups(net, image())
    assert sets(groups) == {"a": 4, "down": 2}
    assert at(groups, "up.weight", 0) == at(groups, "down.weight", 1) == [0, 1, 2, 3]


def test_heights_folded_into_channels_belong_to_the_channel():
    net = Net(lambda n, x: n.b(n.a(x).flatten(1, 2)), a=nn.Conv3d(3, 2, 1), b=conv(8, 2))
    groups = find_groups(net, torch.randn(1, 3, 4, 5, 5))
    assert at(groups, "b.weight", 1) == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_flattened_map_gives_its_places_to_the_channel():
    net = Net(lambda n, x: n.b(n.a(x).flatten(1)), a=conv(3, 2), b=nn.Linear(72, 2))
    assert at(find_groups(net, image()), "b.weight", 1) == [0] * 36 + [1] * 36


def test_pixel_shuffle_joins_what_one_channel_is_woven_from():
    net = Net(lambda n, x: n.b(F.pixel_shuffle(n.a(x), 2)), a=conv(3, 8), b=conv(2, 2))
    groups = find_groups(net, image())
    assert at(groups, "a.weight", 0) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert at(groups, "b.weight", 1) == [0, 1]
    there_and_back = Net(
        lambda n, x: n.b(F.pixel_unshuffle(F.relu(F.pixel_shuffle(n.a(x), 2)), 2)), a=conv(3, 8), b=conv(8, 2)
    )
    assert at(find_groups(there_and_back, image()), "b.weight", 1) == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_channel_shuffle_keeps_its_parts_of_one_size():
    def run(n: Any, x: Tensor) -> Tensor:
        x = n.a(x)
        batch, channels, height, width = x.shape
        return n.b(
            x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        )

    net = Net(run, a=conv(3, 6), b=conv(6, 2))
    groups = find_groups(net, image())
    assert at(groups, "a.weight", 0) == [0, 1, 2, 0, 1, 2]
    assert at(groups, "b.weight", 1) == [0, 0, 1, 1, 2, 2]


def test_a_gate_of_two_halves_joins_them():
    net = Net(lambda n, x: n.b(F.glu(n.a(x), 1)), a=conv(3, 6), b=conv(3, 2))
    chunked = Net(lambda n, x: n.b(torch.mul(*n.a(x).chunk(2, 1))), a=conv(3, 6), b=conv(3, 2))
    for network in (net, chunked):
        groups = find_groups(network, image())
        assert at(groups, "a.weight", 0) == [0, 1, 2, 0, 1, 2]
        assert at(groups, "b.weight", 1) == [0, 1, 2]


def test_a_canvas_takes_the_channels_that_are_scattered_onto_it():
    def run(n: Any, x: Tensor) -> Tensor:
        pillars = n.a(x)
        canvas = torch.zeros(pillars.shape[1], 36)
        canvas[:, torch.tensor([3, 8, 20, 35])] = pillars.t()
        return n.b(canvas.view(1, -1, 6, 6))

    net = Net(run, a=nn.Linear(3, 4), b=conv(4, 2))
    assert at(find_groups(net, torch.randn(4, 3)), "b.weight", 1) == [0, 1, 2, 3]


class Attention(nn.Module):
    """Self-attention as many people write it."""

    def __init__(self, channels: int, heads: int, bias: bool = False) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_dim = channels // heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.table = nn.Parameter(torch.randn(7, heads)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(count, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        logits = query @ key.transpose(-2, -1) * self.head_dim**-0.5
        if self.table is not None:
            place = torch.arange(tokens)
            logits = logits + self.table[place[:, None] - place[None, :] + tokens - 1].permute(2, 0, 1)
        return self.proj((logits.softmax(-1) @ value).transpose(1, 2).reshape(count, tokens, -1))


def test_attention_heads_go_as_a_whole_with_their_biases_and_are_counted():
    net = Net(
        lambda n, x: n.head(n.attention(n.embed(x)).mean(1)),
        embed=nn.Linear(3, 6),
        attention=Attention(6, 3, bias=True),
        head=nn.Linear(6, 2),
    )
    groups = find_groups(net, torch.randn(2, 4, 3))
    assert sets(groups)["attention.qkv.heads"] == 3
    heads = at(groups, "attention.proj.weight", 1)
    assert heads == [h for h in sorted(set(heads)) for _ in range(2)]
    assert at(groups, "attention.qkv.weight", 0) == heads * 3
    assert at(groups, "attention.table", 1) == heads[::2]
    assert [(c.module, c.name, c.groups.tolist()) for c in groups.counts] == [("attention", "num_heads", heads[::2])]
    [gate] = [gate for gate in groups.gates if gate.groups[0] == heads[0]]
    assert (gate.weight, gate.bias, gate.axis) == ("attention.proj.weight", None, 1)
    assert groups.group_flops[heads[0]] == 2 * (2.0 * 4 * 4 * 2) * 2  # two products, two samples


def test_one_head_alone_stays():
    net = Net(lambda n, x: n.head(n.attention(x).mean(1)), attention=Attention(4, 1), head=nn.Linear(4, 2))
    groups = find_groups(net, torch.randn(2, 4, 4))
    assert sets(groups) == {"attention.proj": 4}
    assert "a product over all channels" in reasons(groups)["attention.qkv"]


def test_torchs_fused_attention_is_the_same():
    def run(n: Any, x: Tensor) -> Tensor:
        q, k, v = n.qkv(x).view(2, 4, 3, 2, 3).permute(2, 0, 3, 1, 4)
        return n.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 4, -1)).mean(1)

    net = Net(run, qkv=nn.Linear(3, 18), proj=nn.Linear(6, 2))
    groups = find_groups(net, torch.randn(2, 4, 3), trial=False)
    assert at(groups, "qkv.weight", 0) == [0, 0, 0, 1, 1, 1] * 3


def test_torchs_multihead_attention_prunes_heads_and_stream():
    def run(n: Any, x: Tensor) -> Tensor:
        x = n.embed(x)
        return n.head(n.norm(x + n.attention(x, x, x)[0]).mean(1))

    attention = nn.MultiheadAttention(6, 2, batch_first=True)
    net = Net(run, embed=nn.Linear(3, 6), attention=attention, norm=nn.LayerNorm(6), head=nn.Linear(6, 2))
    groups = find_groups(net, torch.randn(2, 4, 3))
    assert sets(groups) == {"embed": 6, "attention.heads": 2}
    assert at(groups, "attention.in_proj_weight", 0) == [6, 6, 6, 7, 7, 7] * 3
    assert at(groups, "attention.in_proj_weight", 1) == at(groups, "attention.out_proj.weight", 0) == [0, 1, 2, 3, 4, 5]
    assert at(groups, "attention.out_proj.weight", 1) == [6, 6, 6, 7, 7, 7]
    assert groups.layer_norms == ["norm"]


def test_four_pixels_of_a_patch_merge_repeat_each_channel():
    def run(n: Any, x: Tensor) -> Tensor:
        x = n.a(x).permute(0, 2, 3, 1)
        x = x.view(1, 3, 2, 3, 2, -1).permute(0, 1, 3, 5, 2, 4).flatten(3)
        return n.b(n.norm(x))

    net = Net(run, a=conv(3, 3), norm=nn.LayerNorm(12), b=nn.Linear(12, 2))
    groups = find_groups(net, image())
    assert at(groups, "b.weight", 1) == at(groups, "norm.weight", 0) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert groups.layer_norms == ["norm"]


def test_a_layer_norm_over_channels_that_are_not_zero_when_removed_holds_them():
    """The masked network would count sigmoid(0) = 1/2, the compacted one a zero."""

    def run(activation: Callable[[Tensor], Tensor]) -> Net:
        return Net(
            lambda n, x: n.b(n.norm(activation(n.a(x)))), a=nn.Linear(3, 4), norm=nn.LayerNorm(4), b=nn.Linear(4, 2)
        )

    held = "a layer norm over channels that are not zero when they are removed, in norm"
    for activation in (torch.sigmoid, torch.exp, F.softplus, lambda y: y + 1, lambda y: 1 - F.relu(y)):
        groups = find_groups(run(activation), torch.randn(5, 3), trial=False)
        assert reasons(groups)["a"] == held
    for activation in (F.gelu, F.relu, F.silu, torch.tanh, lambda y: y * torch.sigmoid(y), lambda y: 2 * y - y):
        assert sets(find_groups(run(activation), torch.randn(5, 3))) == {"a": 4}


def test_the_logarithm_of_summed_exponentials_leaves_something_of_a_removed_channel():
    def run(reduce: Callable[[Tensor], Tensor]) -> Net:
        return Net(lambda n, x: n.b(n.norm(reduce(n.a(x)))), a=conv(3, 4), norm=nn.LayerNorm(4), b=nn.Linear(4, 2))

    groups = find_groups(run(lambda y: y.logsumexp((2, 3))), image(), trial=False)
    assert "not zero when they are removed" in reasons(groups)["a"]
    for reduce in (lambda y: y.amax((2, 3)), lambda y: y.std((2, 3)), lambda y: y.mean((2, 3))):
        assert sets(find_groups(run(reduce), image())) == {"a": 4}


def test_a_batch_norm_without_an_affine_map_leaves_something_of_a_removed_channel():
    net = Net(
        lambda n, x: n.b(n.norm(n.plain(n.a(x)))),
        a=nn.Linear(3, 4),
        plain=nn.BatchNorm1d(4, affine=False),
        norm=nn.LayerNorm(4),
        b=nn.Linear(4, 2),
    )
    groups = find_groups(net, torch.randn(5, 3), trial=False)
    assert "not zero when they are removed" in reasons(groups)["a"]


def test_a_depthwise_convolution_on_channels_that_stay_is_reported_too():
    net = Net(lambda n, x: n.c(n.b(n.a(x).softmax(1))), a=conv(3, 4), b=conv(4, 4, groups=4), c=conv(4, 2))
    kept = {k.layer: k.channels for k in find_groups(net, image()).kept}
    assert kept == {"a": 4, "b": 4, "c": 2}


def test_torchs_channel_shuffle_keeps_its_parts_of_one_size():
    net = Net(lambda n, x: n.b(n.shuffle(n.a(x))), a=conv(3, 6), shuffle=nn.ChannelShuffle(2), b=conv(6, 2))
    groups = find_groups(net, image())
    assert at(groups, "a.weight", 0) == [0, 1, 2, 0, 1, 2]
    assert at(groups, "b.weight", 1) == [0, 0, 1, 1, 2, 2]


def test_branches_that_are_stacked_and_summed_join_channel_by_channel():
    def run(n: Any, x: Tensor) -> Tensor:
        both = torch.stack([n.a(x), n.b(x)])
        return n.c((both * both.softmax(0)).sum(0))

    net = Net(run, a=conv(3, 4), b=conv(3, 4), c=conv(4, 2))
    assert sets(find_groups(net, image())) == {"a": 4}


def test_as_many_heads_as_a_head_has_channels():
    net = Net(lambda n, x: n.head(n.attention(x).mean(1)), attention=Attention(4, 2), head=nn.Linear(4, 2))
    groups = find_groups(net, torch.randn(3, 5, 4))
    assert sets(groups) == {"attention.qkv.heads": 2, "attention.proj": 4}
    assert [c.name for c in groups.counts] == ["num_heads"]


def test_an_attribute_that_nothing_goes_by_ties_nothing_down():
    def run(n: Any, x: Tensor) -> Tensor:
        x = n.a(x).flatten(2)
        return n.b(n.c(x.transpose(1, 2).reshape(1, 36, -1)).reshape(1, 36, -1))

    net = Net(run, a=conv(3, 4), c=nn.Linear(4, 4), b=nn.Linear(4, 2), dim=4)
    groups = find_groups(net, image())
    assert sets(groups) == {"a": 4, "c": 4}


def test_what_is_picked_along_places_keeps_its_channels_apart():
    def run(n: Any, x: Tensor) -> Tensor:
        x = n.a(x).flatten(2)  # [1, 4, 36]
        highest = x.max(2).values + x.amax(2) + x.sort(2).values[..., -1] + x.topk(3, 2).values.sum(2)
        first = x.argmax(2)  # one place a channel
        there = x.gather(2, first[..., None])[..., 0]
        return n.b(highest + there + x[:, :, (x.sum(1) > 0)[0].long().argmax()])

    groups = find_groups(Net(run, a=conv(3, 4), b=nn.Linear(4, 2)), image(), trial=False)
    assert "sum over channels" in reasons(groups)["a"]  # of the last term alone

    def apart(n: Any, x: Tensor) -> Tensor:
        x = n.a(x).flatten(2)
        picked = x.gather(2, x.argmax(2)[..., None])[..., 0]
        return n.b(x.max(2).values + x.sort(2).values[..., -1] + x.topk(3, 2).values.sum(2) + picked)

    assert sets(find_groups(Net(apart, a=conv(3, 4), b=nn.Linear(4, 2)), image())) == {"a": 4}


def test_a_group_norm_loses_whole_groups():
    net = Net(lambda n, x: n.b(F.relu(n.norm(n.a(x)))), a=conv(3, 6), norm=nn.GroupNorm(3, 6), b=conv(6, 2))
    groups = find_groups(net, image())
    assert at(groups, "a.weight", 0) == at(groups, "norm.weight", 0) == [0, 0, 1, 1, 2, 2]
    assert [(c.name, c.groups.tolist()) for c in groups.counts] == [("num_groups", [0, 1, 2])]


def test_a_parameter_used_as_data_follows_its_channels():
    net = Net(
        lambda n, x: n.b((n.a(x) + n.places) * n.scale).mean(1),
        a=nn.Linear(3, 4),
        places=nn.Parameter(torch.randn(1, 5, 4)),
        scale=nn.Parameter(torch.randn(4)),
        b=nn.Linear(4, 2),
    )
    groups = find_groups(net, torch.randn(2, 5, 3))
    assert at(groups, "places", 2) == at(groups, "scale", 0) == [0, 1, 2, 3]


def test_a_parameter_as_a_matrix_is_a_layer_the_other_way_round():
    net = Net(lambda n, x: n.b(F.relu(x @ n.w)), w=nn.Parameter(torch.randn(3, 4)), b=nn.Linear(4, 2))
    groups = find_groups(net, torch.randn(2, 3))
    assert at(groups, "w", 1) == at(groups, "b.weight", 1) == [0, 1, 2, 3]


def test_a_layer_that_runs_twice_joins_what_it_reads():
    net = Net(lambda n, x: n.c(F.relu(n.b(F.relu(n.b(n.a(x)))))), a=conv(3, 4), b=conv(4, 4), c=conv(4, 2))
    groups = find_groups(net, image())
    assert sets(groups) == {"a": 4}
    assert at(groups, "b.weight", 0) == at(groups, "b.weight", 1) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (lambda n, x: n.b(n.a(x).softmax(1)), "softmax over channels, in Net"),
        (lambda n, x: n.b(n.a(x) * n.a(x).mean(1, keepdim=True)), "mean over channels, in Net"),
        (lambda n, x: n.b(n.a(x) + torch.ones(1, 4, 6, 6).sqrt()), "it meets data that has no channels, in Net"),
        (lambda n, x: n.b(n.a(x)[:, torch.tensor([3, 2, 1, 0])]), "its channels are read by number, in Net"),
        (lambda n, x: n.b(torch.cat([n.a(x)[:, :3], n.a(x)[:, 3:]], 1)), "it is cut at a fixed place, in Net"),
        (lambda n, x: n.b(torch.linalg.qr(n.a(x))[0]), "no rule says what aten.linalg_qr does to channels, in Net"),
        (lambda n, x: n.b(n.a(x).roll(1, 1)), "its channels are rolled, in Net"),
        (lambda n, x: n.b(n.a(x).sort(1).values), "sort over channels, in Net"),
        (lambda n, x: n.b(n.a(x).topk(4, 1).values), "topk over channels, in Net"),
        (lambda n, x: n.b(n.a(x) * n.a(x).max(1, keepdim=True).values), "max over channels, in Net"),
        (lambda n, x: n.b(n.a(x) * n.a(x).argmax(1, keepdim=True)), "argmax over channels, in Net"),
    ],
)
def test_what_mixes_channels_stays_with_the_reason(run, why):
    groups = find_groups(Net(run, a=conv(3, 4), b=conv(4, 2)), image(), trial=False)
    assert sets(groups) == {}
    assert reasons(groups)["a"] == why


def test_a_width_in_the_code_is_found_by_the_trial():
    def run(n: Any, x: Tensor) -> Tensor:
        return n.c(F.relu(n.b(n.a(x).view(1, 4, 6, 6))))

    net = Net(run, a=conv(3, 4), b=conv(4, 5), c=conv(5, 2))
    groups = find_groups(net, image())
    assert sets(groups) == {"b": 5}
    assert reasons(groups)["a"].startswith("the compacted network failed (RuntimeError: shape '[1, 4, 6, 6]'")
    assert sets(find_groups(net, image(), trial=False)) == {"a": 4, "b": 5}


def test_a_number_of_channels_in_the_arithmetic_is_found_by_the_trial():
    def run(n: Any, x: Tensor) -> Tensor:
        x = n.a(x)
        return n.c(F.relu(n.b(x / x.shape[1])))

    net = Net(run, a=conv(3, 4), b=conv(4, 5), c=conv(5, 2))
    groups = find_groups(net, image())
    assert sets(groups) == {"b": 5}
    assert reasons(groups)["a"] == "the compacted network returned something else than the masked one"


def test_a_layer_that_does_not_run_is_reported():
    net = Net(lambda n, x: n.b(n.a(x)), a=conv(3, 4), b=conv(4, 2), idle=conv(3, 7))
    [kept] = [k for k in find_groups(net, image()).kept if k.layer == "idle"]
    assert (kept.channels, kept.reason) == (7, "it did not run, or not by its own forward")


def test_operations_are_counted_per_entry_of_a_weight():
    net = Net(
        lambda n, x: n.c(n.b(n.a(x)).flatten(2).mean(2)),
        a=conv(3, 4),
        b=nn.ConvTranspose2d(4, 5, 2, stride=2),
        c=nn.Linear(5, 2),
    )
    groups = find_groups(net, torch.cat([image(), image()]))
    assert groups.flops == {"a.weight": 2.0 * 72, "b.weight": 2.0 * 72, "c.weight": 2.0 * 2}


def test_the_model_comes_back_as_it_was():
    net = Net(lambda n, x: n.b(F.relu(n.norm(n.a(x)))), a=conv(3, 4), norm=nn.BatchNorm2d(4), b=conv(4, 2)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    find_groups(net, image())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert net.norm.training
    assert not net._forward_hooks
    assert "forward" not in net.a.__dict__
    assert torch.equal(torch.get_rng_state(), state)
    assert nn.modules.module._global_forward_hooks == {} == nn.modules.module._global_forward_pre_hooks


def test_an_error_in_the_forward_leaves_no_hook_behind():
    def run(n: Any, x: Tensor) -> Tensor:
        n.a(x)
        raise ZeroDivisionError

    net = Net(run, a=conv(3, 4))
    with pytest.raises(ZeroDivisionError):
        find_groups(net, image())
    assert not net._forward_hooks
    assert nn.modules.module._global_forward_hooks == {} == nn.modules.module._global_forward_pre_hooks


def two_branches(run: Callable[..., Any]) -> Any:
    net = Net(run, camera=conv(3, 4), lidar=conv(3, 4), fuse=conv(8, 3), head=conv(3, 2))
    return adapt(net, branches={"camera": ["camera"], "lidar": ["lidar"]}, loss=lambda n, x: n(x).square().mean())


def test_sets_lie_in_branch_order_and_a_set_of_two_branches_is_fusion():
    apart = find_groups(two_branches(lambda n, x: n.head(n.fuse(torch.cat([n.camera(x), n.lidar(x)], 1)))), image())
    assert [(e.name, e.branch) for e in apart.layout.entries] == [
        ("camera", "camera"),
        ("lidar", "lidar"),
        ("fuse", "fusion"),
    ]
    assert at(apart, "fuse.weight", 1) == [0, 1, 2, 3, 4, 5, 6, 7]

    def half(n: Any, x: Tensor) -> Tensor:
        camera, lidar = n.camera(x), n.lidar(x)
        return n.head(n.fuse(torch.cat([camera + lidar, camera], 1)))

    with pytest.raises(ModelError, match=r"branch 'camera': none of its channels can be pruned"):
        find_groups(two_branches(half), image())


def test_a_branch_whose_channels_all_stay_is_an_error():
    def run(n: Any, x: Tensor) -> Tensor:
        return n.head(n.fuse(torch.cat([n.camera(x).softmax(1), n.lidar(x)], 1)))

    with pytest.raises(ModelError, match=r"branch 'camera'.*camera: softmax over channels"):
        find_groups(two_branches(run), image())
