"""Batch norms in the layers before them: the same network with fewer layers, and no norm folded that must not be."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

from fastalter import models as in_tree
from fastalter.errors import ModelError
from fastalter.models.spconv_border import spconv
from fastalter.structure.compaction.compact import compact_model
from fastalter.structure.compaction.fold import fold_norms
from fastalter.structure.compaction.job import probe
from fastalter.structure.compaction.plan import CompactionPlan
from tests.structure.compact_nets import Flags, build

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def lively(net):
    """float64, eval mode, norms with statistics and factors of their own."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 3)
            if module.weight is not None:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return net.double().eval()


def folded(net, *inputs):
    """(a folded copy, what was found); it computes what the net does."""
    other = copy.deepcopy(net)
    found = fold_norms(other, lambda model: model(*inputs))
    torch.testing.assert_close(other(*inputs), net(*inputs), **EXACT)
    return other, found


LAYERS = {
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d, (2, 4, 5, 5)),
    "conv with a bias, padding of its own": (
        lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular"),
        nn.BatchNorm1d,
        (2, 4, 5),
    ),
    "grouped conv": (lambda: nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d, (2, 4, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2), nn.BatchNorm2d, (2, 4, 5, 5)),
    "grouped transposed": (lambda: nn.ConvTranspose3d(4, 6, 2, groups=2), nn.BatchNorm3d, (2, 4, 3, 3, 3)),
    "linear": (lambda: nn.Linear(4, 6, bias=False), nn.BatchNorm1d, (5, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"eps": 0.1}])
def test_a_norm_behind_a_layer_goes_into_it(name, settings):
    layer, norm, shape = LAYERS[name]
    net = lively(nn.Sequential(layer(), norm(6, **settings), nn.ReLU()))
    other, found = folded(net, torch.randn(shape, dtype=torch.float64))
    assert found.plan.folds == [("0", "1")]
    assert found.left == {}
    assert type(other[1]) is nn.Identity
    assert [name for name, _ in other.named_parameters()] == ["0.weight", "0.bias"]
    assert list(other.buffers()) == []


def test_sparse_convolutions_get_a_bias_that_works_on_the_cpu_too():
    net, inputs, _ = build("sparse")
    other, found = folded(net, *inputs)
    pairs = [("stem.0", "stem.1"), ("block.conv1", "block.bn1"), ("block.conv2", "block.bn2"), ("down.0", "down.1")]
    assert found.plan.folds == pairs
    assert isinstance(other.stem[0], spconv.SubMConv3d)
    assert other.block.conv1.bias.shape == (6,)
    still = other(*inputs)
    torch.testing.assert_close(other.train()(*inputs), still, **EXACT)
    still.sum().backward()
    assert other.block.conv1.bias.grad.any()
    copied = copy.deepcopy(other)
    torch.testing.assert_close(copied(*inputs), still, **EXACT)


@pytest.mark.parametrize("name", ["convs", "sparse"])
def test_compacted_and_folded_networks_rebuild_from_the_plan(name, tmp_path):
    net, inputs, groups = build(name)
    kept = torch.arange(groups.size) % 3 > 0
    small = compact_model(net, Flags(groups, kept))
    before = small(*inputs)
    found = fold_norms(small, lambda model: model(*inputs), CompactionPlan.of(groups, kept, net))
    torch.testing.assert_close(small(*inputs), before, **EXACT)
    found.plan.save(tmp_path / "plan.json")
    fresh, _, _ = build(name, seed=1)
    rebuilt = CompactionPlan.load(tmp_path / "plan.json").apply(fresh)
    rebuilt.load_state_dict(small.state_dict(), strict=True)
    torch.testing.assert_close(rebuilt(*inputs), small(*inputs), rtol=0, atol=0)
    torch.testing.assert_close(found.plan.apply(net)(*inputs), before, **EXACT)  # with the original weights


@pytest.mark.parametrize("name", ["bevfusion-tiny", "bevfusion-tiny-resnet"])
def test_in_tree_networks_fold_every_norm(name):
    net = lively(in_tree.build(name)).float()
    batch = probe(net.config)
    with torch.no_grad():
        before = net(batch)["dense_heatmap"]
        found = fold_norms(net, lambda model: model(batch))
        after = net(batch)["dense_heatmap"]
    assert found.left == {}
    assert not [path for path, module in net.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))


# ---- norms that stay -------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def conv():
    return nn.Conv2d(3, 3, 1)


class Scaled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Clamped(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


def tied(net):
    net.other.weight = net.conv.weight
    return net


def hooked(net):
    net.conv.register_forward_hook(lambda module, args, output: output * 2)
    return net


def add(m, x):
    y = m.conv(x)
    return m.norm(y) + y


def in_place(m, x):
    y = m.conv(x)
    y += 1
    return m.norm(y)


def norm():
    return nn.BatchNorm2d(3)


STAY = {
    "an add reads it too": (lambda: Net(add, conv=conv(), norm=norm()), "something else reads what conv gives"),
    "it leaves the network": (
        lambda: Net(lambda m, x: (m.norm(y := m.conv(x)), y), conv=conv(), norm=norm()),
        "something else reads what conv gives",
    ),
    "changed in place": (lambda: Net(in_place, conv=conv(), norm=norm()), "something else reads what conv gives"),
    "the layer runs twice": (
        lambda: Net(lambda m, x: m.norm(m.conv(m.conv(x))), conv=conv(), norm=norm()),
        "something else reads what conv gives",
    ),
    "behind an add": (
        lambda: Net(lambda m, x: m.norm(m.conv(x) + 1), conv=conv(), norm=norm()),
        "its input is not what a convolution or linear layer gave",
    ),
    "before the layer": (
        lambda: Net(lambda m, x: m.conv(m.norm(x)), conv=conv(), norm=norm()),
        "its input is not what a convolution or linear layer gave",
    ),
    "not run": (lambda: Net(lambda m, x: m.conv(x), conv=conv(), norm=norm()), "it was not run"),
    "behind two layers": (
        lambda: Net(lambda m, x: m.norm(m.conv(x)) + m.norm(m.other(x)), conv=conv(), other=conv(), norm=norm()),
        "it stands behind several layers",
    ),
    "two norms behind it": (
        lambda: Net(lambda m, x: m.norm(m.conv(x)) + m.also(m.conv(x)), conv=conv(), norm=norm(), also=norm()),
        "conv stands before several norms",
    ),
    "shared weights": (
        lambda: tied(Net(lambda m, x: m.other(m.norm(m.conv(x))), conv=conv(), other=conv(), norm=norm())),
        "conv shares its weights",
    ),
    "hooks": (
        lambda: hooked(Net(lambda m, x: m.norm(m.conv(x)), conv=conv(), norm=norm())),
        "its input is not what|conv is not a plain layer",
    ),
    "a layer of another class": (
        lambda: Net(lambda m, x: m.norm(m.conv(x)), conv=Scaled(3, 3, 1), norm=norm()),
        "conv is not a plain layer",
    ),
    "computed weights": (
        lambda: Net(lambda m, x: m.norm(m.conv(x)), conv=nn.utils.parametrizations.weight_norm(conv()), norm=norm()),
        "conv is not a plain layer",
    ),
    "a norm of another class": (
        lambda: Net(lambda m, x: m.norm(m.conv(x)), conv=conv(), norm=Clamped(3)),
        r"it does not compute s \* x \+ t",
    ),
    "statistics of the batch": (
        lambda: Net(lambda m, x: m.norm(m.conv(x)), conv=conv(), norm=nn.BatchNorm2d(3, track_running_stats=False)),
        r"it does not compute s \* x \+ t",
    ),
    "another axis": (
        lambda: Net(lambda m, x: m.norm(m.conv(x.flatten(2))), conv=nn.Linear(9, 3), norm=nn.BatchNorm1d(3)),
        "it normalises another axis than conv gives channels on",
    ),
}


@pytest.mark.parametrize("case", STAY)
def test_a_norm_that_cannot_go_stays_and_the_reason_is_told(case):
    make, reason = STAY[case]
    torch.manual_seed(0)
    net = lively(make())
    x = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    before, state = net(x), copy.deepcopy(net.state_dict())
    found = fold_norms(net, lambda model: model(x))
    assert found.plan.folds == []
    assert re.match(reason, found.left["norm"]), found.left
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    torch.testing.assert_close(net(x), before, rtol=0, atol=0)


def test_a_sparse_output_read_by_another_convolution_stays():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            net = build("sparse")[0]
            self.stem, self.next = net.stem, net.block.conv1

        def forward(self, features, coords):
            x = self.stem[0](spconv.SparseConvTensor(features, coords, [6, 6, 6], 1))
            return self.stem[1](x.features) + self.next(x).features

    _, inputs, _ = build("sparse")
    _, found = folded(Both().eval(), *inputs)
    assert found.left == {"stem.1": "something else reads what stem.0 gives"}


def test_modes_hooks_and_a_failing_pass_leave_nothing_behind():
    net = lively(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))).train()

    def failing(model):
        model(torch.randn(2, 3, 4, 4, dtype=torch.float64))
        raise RuntimeError("no more data")

    state = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match="no more data"):
        fold_norms(net, failing)
    assert net.training
    assert net[1].training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in net.modules())
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("2", "1"), "'2', which is ReLU"),
        (("0", "2"), "'2', which is ReLU: no batch norm"),
        (("0", "9"), "'9', which is nothing"),
        (("9", "1"), "'9', which is nothing"),
        (("3", "1"), "which has 5 channels, the norm 1 3"),
    ],
)
def test_pairs_that_do_not_fit_are_refused_before_anything_changes(pair, message):
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 5, 1))
    with pytest.raises(ModelError, match=message):
        CompactionPlan({}, folds=[("0", "1"), pair]).apply(net)
    assert isinstance(net[1], nn.BatchNorm2d)
