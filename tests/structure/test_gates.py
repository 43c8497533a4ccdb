"""dL/dm of channel groups against autograd on gates that are real tensors, in float64 to 1e-9 of the maximum."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastalter.altermoma import Entry, Layout
from fastalter.errors import ScoringError
from fastalter.fusion import adapt, find_weights
from fastalter.structure.arena import GateArena, magnitudes
from fastalter.structure.gates import Gates
from fastalter.structure.groups import FIXED, Axis, ChannelGroups, Gate
from tests.structure.nets import SETS, GatedNet, groups_of, seeded, small_batches

BATCHES = small_batches(2)


@pytest.fixture
def net() -> GatedNet:
    return seeded(GatedNet).train()  # type: ignore[return-value]


def gates_of(net: nn.Module, groups: ChannelGroups) -> Gates:
    return Gates(groups, find_weights(adapt(net)), net)


def gradients_of(net: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    parameters = dict(net.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(net.loss(batch), list(parameters.values())), strict=True))  # type: ignore[operator]


def by_autograd(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """dL/dm by multiplying the channels for real, sets in order."""
    copied = copy.deepcopy(net)
    gates = copied.real_gates()  # type: ignore[operator]
    return torch.cat(torch.autograd.grad(copied.loss(batch), list(gates.values())))  # type: ignore[operator]


def test_every_kind_of_gate_equals_autograd(net: GatedNet) -> None:
    """Norm, bias without norm, residual add, grouped convolution, layer norm, heads, a channel of no group."""
    expected = by_autograd(net, BATCHES[0])
    found = gates_of(net, groups_of(net)).derivative(gradients_of(net, BATCHES[0]))
    start = 0
    for name, (_, size) in SETS.items():
        ours, theirs = found[start : start + size], expected[start : start + size]
        assert float(theirs.abs().min()) > 0, name
        assert float((ours - theirs).abs().max()) <= 1e-9 * float(theirs.abs().max()), name
        start += size


def test_frozen_batch_norm_is_no_exception(net: GatedNet) -> None:
    net.eval()
    expected = by_autograd(net, BATCHES[0])
    found = gates_of(net, groups_of(net)).derivative(gradients_of(net, BATCHES[0]))
    assert torch.allclose(found, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


def test_float32_and_channels_last_agree_with_float64(net: GatedNet) -> None:
    gradients, groups = gradients_of(net, BATCHES[0]), groups_of(net)
    double = gates_of(net, groups).derivative(gradients)
    net.float().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert not net.fuser[0].weight.is_contiguous()
    single = gates_of(net, groups).derivative({name: g.float() for name, g in gradients.items()})
    assert single.dtype == torch.float64
    assert torch.allclose(single, double, rtol=0, atol=1e-6 * float(double.abs().max()))
    assert not torch.equal(single, double)


def test_the_values_are_those_of_the_parameters_now_or_those_that_are_given(net: GatedNet) -> None:
    gates, gradients = gates_of(net, groups_of(net)), gradients_of(net, BATCHES[0])
    before = gates.derivative(gradients)
    theta = {name: p.detach().clone() for name, p in net.named_parameters()}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    assert torch.allclose(gates.derivative(gradients), 2 * before, rtol=1e-12, atol=0)
    assert torch.equal(gates.derivative(gradients, at=theta), before)


def test_a_parameter_without_a_gradient_adds_nothing(net: GatedNet) -> None:
    gates, gradients = gates_of(net, groups_of(net)), gradients_of(net, BATCHES[0])
    whole = gates.derivative(gradients)
    camera = {name: g for name, g in gradients.items() if name.startswith("backbones.camera.block_norm")}
    rest = {name: g for name, g in gradients.items() if name not in camera}
    assert gates.derivative({}).tolist() == [0.0] * 33
    assert torch.allclose(gates.derivative(camera) + gates.derivative(rest), whole, rtol=0, atol=1e-15)
    assert gates.derivative(camera)[:6].ne(0).all()
    assert gates.derivative(camera)[6:].eq(0).all()


def test_it_names_the_parameters_whose_gradients_it_reads(net: GatedNet) -> None:
    gates, gradients = gates_of(net, groups_of(net)), gradients_of(net, BATCHES[0])
    assert len(gates.parameters) == 18
    assert all(p is net.get_parameter(name) for name, p in gates.parameters.items())
    only = {name: gradients[name] for name in gates.parameters}
    assert torch.equal(gates.derivative(only), gates.derivative(gradients))


# ---- a shared parameter ---------------------------------------------------------------------------------------------


class Twice(nn.Module):
    """Two uses of one weight, under two names."""

    def __init__(self, apart: bool = False) -> None:
        super().__init__()
        self.camera, self.lidar, self.first, self.second = (nn.Linear(4, 4) for _ in range(4))
        self.second.weight = self.first.weight
        self.apart = apart
        self.branches, self.outlets = {"camera": ["camera"], "lidar": ["lidar"]}, {"camera": "camera", "lidar": "lidar"}

    def forward(self, x: Tensor, m: Tensor) -> Tensor:
        y = m * self.first(self.camera(x)) + m * self.second(self.lidar(x))
        return y.square().mean()

    def loss(self, batch: Tensor) -> Tensor:
        return self(batch, torch.ones(4, dtype=torch.float64))

    def groups(self) -> ChannelGroups:
        numbers = torch.arange(4)
        sets = [Entry("first", (4,), 0, 4, "fusion")]
        gates = [
            Gate("first", "first.weight", "first.bias", 0, numbers),
            Gate("second", "second.weight", "second.bias", 0, numbers.flip(0) if self.apart else numbers),
        ]
        return ChannelGroups(Layout(sets), [Axis("first.weight", 0, numbers)], gates)


def test_a_parameter_that_two_layers_share_is_counted_once() -> None:
    net, m = seeded(Twice), torch.ones(4, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (expected,) = torch.autograd.grad(net(x, m), m)
    found = gates_of(net, net.groups()).derivative(gradients_of(net, x))  # type: ignore[operator,arg-type]
    assert torch.allclose(found, expected, rtol=1e-12, atol=0)


def test_a_shared_parameter_of_different_groups_is_refused() -> None:
    net = seeded(Twice, True)
    with pytest.raises(ScoringError, match=r"second.weight is shared by first and second, whose channels are of"):
        gates_of(net, net.groups())  # type: ignore[operator]


def test_the_positions_of_a_group_may_lie_anywhere() -> None:
    """As those of a gated linear unit, whose halves go together."""
    net = seeded(Twice)
    numbers = torch.tensor([1, 0, FIXED, 1])
    axes = [Axis("camera.weight", 0, numbers)]
    gates = [Gate("camera", "camera.weight", "camera.bias", 0, numbers)]
    groups = ChannelGroups(Layout([Entry("camera", (2,), 0, 2, "camera")]), axes, gates)
    gradients = {name: torch.ones_like(p) for name, p in net.named_parameters()}
    rows = (net.camera.weight.sum(1) + net.camera.bias).tolist()  # type: ignore[operator,union-attr]
    assert gates_of(net, groups).derivative(gradients).tolist() == pytest.approx([rows[1], rows[0] + rows[3]])


# ---- groups that do not fit -----------------------------------------------------------------------------------------


def changed(original: ChannelGroups, index: int, **changes: object) -> ChannelGroups:
    gates = list(original.gates)
    gates[index] = dataclasses.replace(gates[index], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(original, gates=gates)


def test_groups_that_do_not_fit_the_model_are_refused(net: GatedNet) -> None:
    groups = groups_of(net)
    with pytest.raises(ScoringError, match=r"gate of fuser.0: the model has no parameter fuser.2.weight; find groups"):
        gates_of(net, changed(groups, 7, weight="fuser.2.weight"))
    with pytest.raises(ScoringError, match=r"gate of fuser.0: the model has no parameter fuser.1.running_var"):
        gates_of(net, changed(groups, 7, bias="fuser.1.running_var"))
    with pytest.raises(ScoringError, match=r"gate of fuser.0: it has 3 channels, and axis 0 of fuser.1.weight \[8\]"):
        gates_of(net, changed(groups, 7, groups=torch.arange(3)))
    with pytest.raises(ScoringError, match=r"gate of fuser.0: it has 8 channels, and axis 1 of fuser.1.weight \[8\]"):
        gates_of(net, changed(groups, 7, axis=1))
    with pytest.raises(ScoringError, match=r"qkv.heads: some of its channel groups have no gate"):
        gates_of(net, dataclasses.replace(groups, gates=groups.gates[:-1]))


# ---- the arena ------------------------------------------------------------------------------------------------------


def test_the_arena_sums_derivatives_and_leaves_a_masked_branch_out(net: GatedNet) -> None:
    groups, weights = groups_of(net), find_weights(adapt(net))
    arena = GateArena(groups, weights, net)
    one, other = (gradients_of(net, batch) for batch in BATCHES)
    first, second = (gates_of(net, groups).derivative(g) for g in (one, other))
    arena.open_stage("camera")
    for gradients in (one, other):
        arena.grad.add(gradients)
        arena.start["camera"].add(gradients)
    arena.grad.scale(0.5)
    assert torch.equal(arena.theta, torch.ones(33, dtype=torch.float64))
    assert torch.allclose(arena.grad.flat, (first + second) / 2, rtol=0, atol=1e-15)
    assert torch.equal(arena.start["camera"].flat, (first + second)[10:])  # the camera's ten groups come first
    squares = arena.accumulator()
    squares.add_squares(one)
    squares.add_squares(other)
    assert torch.allclose(squares.flat, first**2 + second**2, rtol=1e-12, atol=0)
    one["fuser.1.weight"][3] = float("nan")
    arena.grad.add(one)
    with pytest.raises(ScoringError, match=r"fuser.0: its gradient with nothing masked is not finite"):
        arena.check_finite()


def test_a_branch_without_groups_can_be_masked() -> None:
    net = seeded(Twice)
    arena = GateArena(net.groups(), find_weights(adapt(net)), net)  # type: ignore[operator]
    arena.open_stage("camera")
    assert arena.start["camera"].flat.shape == (4,)
    assert arena.stages_of("fusion") == ["camera"]


def test_magnitude_is_the_norm_of_all_that_leaves_with_the_group(net: GatedNet) -> None:
    """By setting to zero, group by group, and seeing what is missing."""
    groups = groups_of(net)
    found = magnitudes(groups, net)
    parameters = dict(net.named_parameters())
    for group in range(groups.size):
        total = 0.0
        for name, axes in groups.axes_of.items():
            if name in parameters:
                gone = parameters[name].detach().clone()
                for axis in axes:
                    gone.index_fill_(axis.axis, (axis.groups == group).nonzero().flatten(), 0.0)
                total += float((parameters[name].detach() - gone).square().sum())
        assert float(found[group]) == pytest.approx(total**0.5, rel=1e-12), group
    assert torch.equal(GateArena(groups, find_weights(adapt(net)), net).magnitudes(), found)


def test_the_net_computes_the_same_with_gates_of_one(net: GatedNet) -> None:
    plain, batch = net.eval()(BATCHES[0]), BATCHES[0]
    net.real_gates()
    assert torch.equal(net(batch), plain)
    assert F.mse_loss(plain, torch.zeros_like(plain)) > 0
