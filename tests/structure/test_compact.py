"""Compacted networks: they compute what the masked ones do, and are whole networks that can be trained on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastalter import ops
from fastalter.errors import MaskError, ModelError, TrainingError
from fastalter.masks import prune_model
from fastalter.structure.compaction.compact import compact_model
from fastalter.structure.compaction.plan import CompactionPlan
from fastalter.structure.grouping.find import find_groups
from fastalter.structure.mask import ChannelMask
from tests.masks.nets import net_and_mask
from tests.structure.compact_nets import NETS, Flags, build, random_flags, regrouped, zeroed

RATIOS = [i / 10 for i in range(1, 10)]
EXACT = {"rtol": 1e-10, "atol": 1e-12}
"""float64: sums over fewer terms, in another order."""


def half(groups):
    """Every other group stays."""
    return torch.arange(groups.size) % 2 == 0


def compacted(name, kept_of=half):
    net, inputs, groups = build(name)
    kept = kept_of(groups)
    return net, inputs, groups, kept, compact_model(net, Flags(groups, kept))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", NETS)
def test_equals_the_masked_network(name, ratio):
    net, inputs, groups = build(name)
    for seed in range(3):
        kept = random_flags(groups, ratio, seed)
        small = compact_model(net, Flags(groups, kept))
        torch.testing.assert_close(small(*inputs), zeroed(net, groups, kept)(*inputs), **EXACT)


@pytest.mark.parametrize("name", NETS)
def test_a_network_without_any_group_left_is_still_the_masked_one(name):
    net, inputs, groups = build(name)
    kept = torch.zeros(groups.size, dtype=torch.bool)
    small = compact_model(net, Flags(groups, kept))
    torch.testing.assert_close(small(*inputs), zeroed(net, groups, kept)(*inputs), **EXACT)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters()) / 2


@pytest.mark.parametrize("name", NETS)
def test_shapes_are_those_of_the_groups(name):
    _, _, groups, kept, small = compacted(name)
    shapes = {key: tuple(tensor.shape) for key, tensor in small.state_dict().items()}
    assert {key: shapes[key] for key in groups.axes_of} == groups.compacted_shapes(kept)


@pytest.mark.parametrize("name", NETS)
def test_the_original_stays_bitwise_and_shares_no_memory(name):
    net, inputs, groups = build(name)
    before, modules = copy.deepcopy(net.state_dict()), [repr(module) for module in net.modules()]
    small = compact_model(net, Flags(groups, half(groups)))
    for parameter in small.parameters():
        parameter.data.fill_(7)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [repr(module) for module in net.modules()] == modules
    net(*inputs)


def test_layers_know_their_new_widths():
    *_, small = compacted("convs")
    assert (small.stem.in_channels, small.stem.out_channels, small.stem_norm.num_features) == (3, 3, 3)
    assert (small.depthwise.in_channels, small.depthwise.out_channels, small.depthwise.groups) == (3, 3, 3)
    assert (small.up.in_channels, small.up.out_channels, small.act.num_parameters) == (3, 4, 3)
    assert (small.up_norm.num_groups, small.up_norm.num_channels) == (2, 4)
    assert (small.split.in_channels, small.split.out_channels, small.split.groups) == (4, 6, 2)
    assert (small.layer_norm.normalized_shape, small.layer_norm.count) == ((6,), 12)
    assert (small.head.in_features, small.head.out_features) == (6, 2)
    assert torch.equal(small.order, torch.tensor([0, 2, 4]))
    *_, small = compacted("encoder")
    attention = small.layer.self_attn
    assert (attention.embed_dim, attention.num_heads, attention.head_dim, attention.kdim) == (4, 2, 2, 4)
    *_, small = compacted("sparse")
    assert (small.down[0].in_channels, small.down[0].out_channels) == (3, 3)
    assert list(small.down[0].weight_shape) == list(small.down[0].weight.shape)


def test_all_tensors_are_cut_by_one_call(monkeypatch):
    calls, run = [], ops.compact_channels

    def counted(weights, kept):
        calls.append(len(weights))
        return run(weights, kept)

    monkeypatch.setattr(ops, "compact_channels", counted)
    _, _, groups, _, _ = compacted("convs")
    assert calls == [len(groups.axes_of) - 1]  # all but the integers


def test_keeps_modes_requires_grad_dtypes_and_formats():
    net, _, groups = build("convs")
    net.train()
    net.stem_norm.eval()
    net.stem.weight.requires_grad_(False)
    net.stem.weight.no_decay = True
    net.head.bfloat16()
    net.depthwise.weight.data = torch.randn(6, 1, 3, 3).double().to(memory_format=torch.channels_last)
    net.up.weight.data = torch.randn(6, 8, 2, 2).double().to(memory_format=torch.channels_last)
    net.stem.bias.grad = torch.ones(6).double()
    small = compact_model(net, Flags(groups, half(groups)))
    modes = {path: module.training for path, module in net.named_modules()}
    assert {path: module.training for path, module in small.named_modules()} == modes
    assert not small.stem.weight.requires_grad
    assert small.stem.bias.requires_grad
    assert small.stem.weight.no_decay
    assert small.stem.bias.grad is None
    assert small.head.weight.dtype == torch.bfloat16
    assert small.up.weight.is_contiguous(memory_format=torch.channels_last)
    assert not small.up.weight.is_contiguous()
    wanted = net.up.weight.detach()[[0, 2, 4]][:, [0, 1, 4, 5]]
    assert torch.equal(small.up.weight, wanted)


def test_a_shared_parameter_stays_shared():
    net, _, _, _, small = compacted("tied")
    assert small.first.weight is small.second.weight
    assert small.first.weight.shape == (3, 3)
    assert small.second.in_features == small.second.out_features == 3
    assert net.first.weight is net.second.weight


def test_hooks_of_modules_are_copied_and_those_that_hold_zeros_are_not():
    net, inputs, groups = build("convs")
    mask = ChannelMask(half(groups), groups, ratio=0.5)
    prune_model(net, mask.weights())
    seen = []
    net.head.register_forward_hook(lambda module, args, output: seen.append(module))
    small = compact_model(net, mask)
    assert all(not module._load_state_dict_post_hooks for module in small.modules())
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small(*inputs).square().sum().backward()
    optimizer.step()
    assert seen[0] is small.head
    assert len(seen) == 1
    assert net.stem._load_state_dict_post_hooks  # the pruned network is still held


def test_wrappers_stay_behind():
    net, inputs, groups = build("convs")
    mask = Flags(groups, half(groups))
    for wrapped in (nn.DataParallel(net), torch.compile(net)):
        small = compact_model(wrapped, mask)
        assert type(small) is type(net)
        torch.testing.assert_close(small(*inputs), zeroed(net, groups, mask.flat)(*inputs), **EXACT)


def test_a_compacted_network_can_be_compacted_again():
    """The norm goes on counting the channels that the first network had."""
    net, inputs, groups, kept, small = compacted("encoder")
    again = {"embed": torch.tensor([True, False, True, True])}
    second_groups, flags = regrouped(groups, kept), torch.ones(int(kept.sum()), dtype=torch.bool)
    flags[:4] = again["embed"]
    smaller = compact_model(small, Flags(second_groups, flags))
    assert set(CompactionPlan.of(second_groups, flags, small).layer_norms.values()) == {8}
    both = kept.clone()
    both[kept] = flags
    torch.testing.assert_close(smaller(*inputs), zeroed(net, groups, both)(*inputs), **EXACT)


class Padded(nn.Module):
    """torch's encoder, which turns padded batches into nested tensors for its fast path where it thinks that it may."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, 8)
        layer = nn.TransformerEncoderLayer(8, 4, 12, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x, padding):
        return self.head(self.encoder(self.embed(x), src_key_padding_mask=padding))


def test_torchs_encoder_with_padding_goes_on_working():
    torch.manual_seed(0)
    net, x = Padded().double().eval(), torch.randn(2, 6, 5, dtype=torch.float64)
    padding = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    groups = find_groups(net, (x, padding))
    kept = random_flags(groups, 0.4, 1)
    small = compact_model(net, Flags(groups, kept))
    expected = zeroed(net, groups, kept)(x, padding)  # with gradients, and so off the fast path
    with torch.no_grad():
        torch.testing.assert_close(small(x, padding)[~padding], expected[~padding], **EXACT)


# ---- optimizers -----------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.001, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
}


def train(net, optimizer, inputs, steps):
    net.train()
    for _ in range(steps):
        optimizer.zero_grad()
        net(*inputs).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", NETS)
def test_training_goes_on_as_that_of_the_masked_network(name, kind):
    """Three steps with the mask held, then two more on both: the compacted weights are the masked ones' slices."""
    net, inputs, groups = build(name)
    mask = ChannelMask(half(groups), groups, ratio=0.5)
    prune_model(net, mask.weights())
    optimizer = OPTIMIZERS[kind](net.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    train(net, optimizer, inputs, 3)
    masked, masked_optimizer = copy.deepcopy((net, optimizer))
    small = compact_model(net, mask, optimizer=optimizer)
    schedule.step()
    masked_optimizer.param_groups[0]["lr"] *= 0.5
    train(small, optimizer, inputs, 2)
    train(masked, masked_optimizer, inputs, 2)
    expected = compact_model(masked, mask)
    for (key, ours), theirs in zip(small.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}")


def test_the_optimizer_keeps_groups_settings_and_strangers():
    net, inputs, groups = build("convs")
    stranger = nn.Parameter(torch.ones(3, dtype=torch.float64))
    stranger.grad = torch.ones(3, dtype=torch.float64)
    rest = [p for n, p in net.named_parameters() if not n.startswith("head")]
    optimizer = torch.optim.Adam([{"params": [stranger, *net.head.parameters()], "lr": 0.5}, {"params": rest}])
    train(net, optimizer, inputs, 1)
    small = compact_model(net, Flags(groups, half(groups)), optimizer=optimizer)
    first, second = optimizer.param_groups
    assert first["lr"] == 0.5
    assert first["params"][0] is stranger
    assert first["params"][1] is small.head.weight
    assert all(p is q for p, q in zip(second["params"], list(small.parameters())[: len(rest)], strict=True))
    assert not set(map(id, net.parameters())) & {id(p) for p in optimizer.state}
    state = optimizer.state[small.head.weight]
    assert state["exp_avg"].shape == small.head.weight.shape
    assert state["step"] == 1


def test_reduced_state_is_cut_where_it_is_long():
    net, inputs, groups = build("encoder")
    optimizer = torch.optim.Adafactor(net.parameters(), lr=0.01)
    train(net, optimizer, inputs, 1)
    before = optimizer.state[net.layer.linear1.weight]["row_var"].clone()
    small = compact_model(net, Flags(groups, half(groups)), optimizer=optimizer)
    state = optimizer.state[small.layer.linear1.weight]
    assert torch.equal(state["row_var"], before[::2])
    assert state["col_var"].shape == (1, 4)
    train(small, optimizer, inputs, 1)


@pytest.mark.parametrize("shape", [(7, 7), (6, 3, 3, 7)])
def test_state_of_another_shape_is_refused_and_nothing_changes(shape):
    net, inputs, groups = build("convs")
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer, inputs, 1)
    optimizer.state[net.stem.weight]["basis"] = torch.zeros(shape)
    with pytest.raises(TrainingError, match=rf"basis of shape \({', '.join(map(str, shape))}\) for a parameter of \(6"):
        compact_model(net, Flags(groups, half(groups)), optimizer=optimizer)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == set(map(id, net.parameters()))
    train(net, optimizer, inputs, 1)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_a_mask_of_single_weights_is_refused():
    net, mask, _ = net_and_mask()
    with pytest.raises(MaskError, match="granularity='channel'"):
        compact_model(net, mask)


def test_groups_of_another_model_are_refused():
    net, _, groups = build("convs")
    other, _, _ = build("tied")
    with pytest.raises(MaskError, match=r"stem\.weight: the groups reach this tensor and the model has none"):
        compact_model(other, Flags(groups, half(groups)))
    wider = copy.deepcopy(net)
    wider.stem = nn.Conv2d(3, 7, 3)
    with pytest.raises(MaskError, match=r"stem\.weight is \(7, 3, 3, 3\) in the model and has 6 positions on axis 0"):
        compact_model(wider, Flags(groups, half(groups)))
    with pytest.raises(MaskError, match=r"must be bool \(10,\)"):
        CompactionPlan.of(groups, torch.ones(3, dtype=torch.bool), net)


def test_a_norm_with_a_forward_of_its_own_is_refused():
    class Odd(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x) + 1

    net, _, groups = build("convs")
    net.layer_norm.__class__ = Odd
    with pytest.raises(ModelError, match="layer_norm: a Odd is no plain LayerNorm"):
        CompactionPlan.of(groups, half(groups), net)
    compact_model(net, Flags(groups, torch.ones(groups.size, dtype=torch.bool)))


def test_a_model_that_cannot_be_copied_is_refused():
    net, _, groups = build("convs")
    net.last = net.stem.weight * 2
    with pytest.raises(ModelError, match="cannot be copied"):
        compact_model(net, Flags(groups, half(groups)))
