"""The in-tree networks: their channel groups, and compacted equal to masked at every ratio."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastalter import Reactivation, models, score_model
from fastalter.data import Batch, load
from fastalter.fusion import adapt, find_weights
from fastalter.masks import masked
from fastalter.structure import FIXED, ChannelGroups, find_groups
from fastalter.structure.compaction.compact import compact_model
from fastalter.structure.mask import ChannelMask

TINY = ["bevfusion-tiny", "bevfusion-tiny-resnet"]
FULL = ["bevfusion-mit-swint-voxelnet", "bevfusion-mit-resnet101-voxelnet"]
RATIOS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


@functools.cache
def problem(name: str) -> tuple[nn.Module, Batch, ChannelGroups]:
    """A float64 network whose norms are far from the identity, one sample, and its groups."""
    model = models.build(name, seed=0).double()
    unsettle_norms(model)
    batch = next(iter(load("synthetic", batches=1, batch_size=1, config=model.config, seed=0)))
    batch = batch.to(torch.device("cpu"), torch.float64)
    return model.eval(), batch, find_groups(adapt(model), batch)


def unsettle_norms(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)):
            module.bias.data = 0.3 * torch.randn(module.bias.shape, generator=generator, dtype=torch.float64)
            module.weight.data += 0.3 * torch.randn(module.bias.shape, generator=generator, dtype=torch.float64)
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.copy_(0.1 * torch.randn(module.bias.shape, generator=generator))
            module.running_var.copy_(1 + 0.5 * torch.rand(module.bias.shape, generator=generator))


def random_mask(groups: ChannelGroups, ratio: float, seed: int) -> ChannelMask:
    """Every set keeps at least one group."""
    kept = torch.rand(groups.size, generator=torch.Generator().manual_seed(seed)) > ratio
    for entry in groups.layout.entries:
        kept[entry.offset] |= not kept[entry.offset : entry.offset + entry.size].any()
    return ChannelMask(kept, groups, ratio=ratio)


def worst(model: nn.Module, batch: Batch, mask: ChannelMask) -> float:
    """The largest difference between compacted and masked predictions, over each one's largest value."""
    small = compact_model(model, mask)
    with torch.no_grad(), masked(model, mask):
        expected = model(batch)
    with torch.no_grad():
        found = small(batch)
    assert torch.equal(found["query_labels"], expected["query_labels"])
    return max(float((found[k] - v).abs().max() / v.abs().max().clamp(min=1e-12)) for k, v in expected.items())


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", TINY)
def test_compacted_equals_masked(name, ratio):
    model, batch, groups = problem(name)
    assert worst(model, batch, random_mask(groups, ratio, seed=round(100 * ratio))) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_compacted_equals_masked_on_altereva_masks(name):
    model, batch, groups = problem(name)
    batches = load("synthetic", batches=2, batch_size=1, config=model.config, seed=3)
    scores = score_model(
        model, batches, granularity="channel", groups=groups, reactivation=Reactivation(batches=2), progress=False
    )
    for ratio in RATIOS:
        mask = scores.mask(ratio, min_keep=1)
        assert worst(model, batch, mask) < 1e-12
        assert mask.kept_total == round((1 - ratio) * groups.size)


@pytest.mark.parametrize("name", TINY)
def test_every_channel_of_every_layer_is_in_a_group_or_kept_with_a_reason(name):
    model, _, groups = problem(name)
    kept: dict[str, int] = {}
    for entry in groups.kept:
        assert entry.reason
        kept[entry.layer] = kept.get(entry.layer, 0) + entry.channels
    grouped = {
        axis.tensor: int((axis.groups != FIXED).sum())
        for axis in groups.axes
        if axis.axis == made_axis(model, axis.tensor)
    }
    for weight in find_weights(adapt(model)):
        if weight.prunable:
            layer = weight.name.rpartition(".")[0]
            channels = weight.parameter.shape[made_axis(model, weight.name)]
            assert grouped.get(weight.name, 0) + kept.get(layer, 0) == channels, weight.name


def made_axis(model: nn.Module, name: str) -> int:
    module = model.get_submodule(name.rpartition(".")[0])
    return 1 if isinstance(module, nn.ConvTranspose2d) else 0


def at(groups: ChannelGroups, tensor: str, axis: int) -> Tensor:
    [found] = [a.groups for a in groups.axes if (a.tensor, a.axis) == (tensor, axis)]
    return found


def test_what_stays_is_what_leaves_the_network_and_the_depth_bins():
    _, _, groups = problem("bevfusion-tiny-resnet")
    heads = [f"heads.object.prediction_heads.0.{n}.1" for n in ("center", "height", "dim", "rot", "vel", "heatmap")]
    assert {k.layer for k in groups.kept} == {
        "encoders.camera.vtransform.depthnet.6",
        "heads.object.heatmap_head.1",
        *heads,
    }
    [depth] = [k for k in groups.kept if "depthnet" in k.layer]
    assert (depth.channels, depth.reason) == (34, "softmax over channels, in encoders.camera.vtransform")


def test_the_coupled_places_of_the_fusion_network():
    """Where each published tool goes wrong: what must be one group is one."""
    _, _, groups = problem("bevfusion-tiny")
    camera, lidar = (
        at(groups, "encoders.camera.vtransform.downsample.6.weight", 0),
        at(groups, "encoders.lidar.backbone.conv_out.0.weight", 0),
    )
    fuser = at(groups, "fuser.0.weight", 1)
    depth = (len(fuser) - len(camera)) // len(lidar)
    assert torch.equal(fuser, torch.cat([camera, lidar.repeat_interleave(depth)]))  # dense(C * D), channel c * D + d
    stream = at(groups, "encoders.camera.backbone.patch_embed.projection.weight", 0)
    merge = at(groups, "encoders.camera.backbone.stages.0.downsample.reduction.weight", 1)
    assert torch.equal(merge, stream.repeat_interleave(4))  # a patch's four pixels adjoin per channel
    attention = "encoders.camera.backbone.stages.1.blocks.0.attn.w_msa"
    table = at(groups, f"{attention}.relative_position_bias_table", 1)
    columns = at(groups, f"{attention}.proj.weight", 1)
    assert torch.equal(columns, table.repeat_interleave(len(columns) // len(table)))
    assert torch.equal(at(groups, f"{attention}.qkv.weight", 0), columns.repeat(3))
    block = "encoders.lidar.backbone.encoder_layers.encoder_layer1.0"
    entry = at(groups, "encoders.lidar.backbone.conv_input.0.weight", 0)
    assert torch.equal(at(groups, f"{block}.conv2.weight", 0), entry)  # a sparse residual block
    assert torch.equal(at(groups, f"{block}.conv1.weight", 4), entry)  # sparse weights end in the channels they read
    context = at(groups, "encoders.camera.vtransform.depthnet.6.weight", 0)
    assert (context[:34] == FIXED).all()
    assert torch.equal(context[34:], at(groups, "encoders.camera.vtransform.downsample.0.weight", 1))
    assert torch.equal(
        at(groups, "decoder.neck.deblocks.1.0.weight", 1), at(groups, "heads.object.shared_conv.weight", 1)[-32:]
    )


def test_the_trial_finds_nothing_that_the_trace_did_not_see():
    model, batch, groups = problem("bevfusion-tiny-resnet")
    tried = find_groups(adapt(model), batch, trial=True)
    assert tried.layout.to_json() == groups.layout.to_json()
    assert tried.kept == groups.kept


def test_a_compacted_network_can_lose_more_channels():
    model, batch, groups = problem("bevfusion-tiny")
    small = compact_model(model, random_mask(groups, 0.3, seed=8))
    left = find_groups(adapt(small), batch)
    stream = "encoders.camera.backbone.patch_embed.projection"
    sizes = {entry.name: entry.size for entry in left.layout.entries}
    assert sizes[stream] == small.get_submodule(stream).out_channels
    assert sorted(left.layer_norms) == sorted(groups.layer_norms)
    assert worst(small, batch, random_mask(left, 0.3, seed=9)) < 1e-12


def test_branches_are_those_of_the_model():
    _, _, groups = problem("bevfusion-tiny")
    assert groups.layout.branches == ["camera", "lidar", "fusion"]
    for entry in groups.layout.entries:
        expected = {"camera": "encoders.camera.", "lidar": "encoders.lidar."}.get(entry.branch)
        assert entry.name.startswith(expected) if expected else not entry.name.startswith("encoders.")


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_size_networks_compacted_equal_masked(name):
    model: Any = models.build(name, seed=0).double()
    unsettle_norms(model)
    batch = next(iter(load("synthetic", batches=1, batch_size=1, config=model.config, seed=0)))
    batch = batch.to(torch.device("cpu"), torch.float64)
    groups = find_groups(adapt(model.eval()), batch, trial=False)
    for ratio in (0.1, 0.5, 0.9):
        assert worst(model, batch, random_mask(groups, ratio, seed=5)) < 1e-12
