"""Networks that others wrote, unchanged: compacted equal to masked, and what of them stays."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fastalter.masks import masked
from fastalter.structure import ChannelGroups, find_groups
from fastalter.structure.compaction.compact import compact_model
from fastalter.structure.mask import ChannelMask

IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
STREAMS = (
    r"a layer norm|a depthwise convolution of data that has no channels|compacted network failed|"
    r"product over all channels|linalg vector norm"
)


def network(name: str) -> nn.Module:
    """In float64, its norms and its last layer far from where they start."""
    torch.manual_seed(0)
    extra = {"googlenet": {"aux_logits": False, "init_weights": True}, "vit_b_32": {"image_size": 64}}
    model = torchvision.models.get_model(name, weights=None, **extra.get(name, {})).double().eval()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.normal_(module.bias, std=0.3)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 1.0, 1.5)
        if isinstance(module, nn.Linear) and not bool(module.weight.any()):
            nn.init.normal_(module.weight)
    return model


def half(groups: ChannelGroups) -> ChannelMask:
    kept = torch.rand(groups.size, generator=torch.Generator().manual_seed(1)) > 0.5
    for entry in groups.layout.entries:
        kept[entry.offset] |= not kept[entry.offset : entry.offset + entry.size].any()
    return ChannelMask(kept, groups, ratio=0.5)


def check(name: str) -> tuple[nn.Module, nn.Module, ChannelGroups]:
    model = network(name)
    groups = find_groups(model, IMAGE, trial=name in ("swin_t", "swin_v2_t"))
    mask = half(groups)
    small = compact_model(model, mask)
    with torch.no_grad():
        found: Tensor = small(IMAGE)
        with masked(model, mask):
            expected: Tensor = model(IMAGE)
    assert expected.std() > 0
    assert (found - expected).abs().max() < 1e-12 * expected.abs().max()
    return model, small, groups


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_all_but_the_classes_can_leave(name):
    model, small, groups = check(name)
    assert [kept.reason.partition(",")[0] for kept in groups.kept] == ["it leaves the network"]
    assert parameters(small) < 0.5 * parameters(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "resnext50_32x4d",
        "densenet121",
        "mobilenet_v2",
        "efficientnet_b0",
        "googlenet",
        "regnet_y_400mf",
        "vgg11_bn",
        "mnasnet0_5",
        "vit_b_32",
    ],
)
def test_larger_ones_too(name):
    model, small, groups = check(name)
    assert [kept.reason.partition(",")[0] for kept in groups.kept] == ["it leaves the network"]
    assert parameters(small) < 0.5 * parameters(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t", "swin_v2_t"])
def test_streams_that_cannot_leave_are_named(name):
    model, small, groups = check(name)
    assert parameters(small) < 0.8 * parameters(model)  # the layers inside the blocks
    streams = [kept for kept in groups.kept if not kept.reason.startswith("it leaves the network")]
    assert streams
    assert [kept for kept in streams if not re.search(STREAMS, kept.reason)] == []
