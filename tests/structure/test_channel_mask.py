"""A mask over channels: the parameter slices it stands for, a model under it, and files that come back equal."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastalter
from fastalter.artifacts import read_artifact, write_artifact
from fastalter.errors import MaskError
from fastalter.finetuning.job import zero_remarks
from fastalter.masks import context
from fastalter.structure.groups import ChannelGroups, Kept
from fastalter.structure.mask import ChannelMask
from tests.structure.nets import SETS, GatedNet, groups_of, seeded, small_batches

BATCH = small_batches(1)[0]


@pytest.fixture
def net() -> GatedNet:
    return seeded(GatedNet).eval()  # type: ignore[return-value]


def random_mask(groups: ChannelGroups, seed: int = 0, whole: str = "") -> ChannelMask:
    """About half of every set goes, but at least one stays; of the set `whole` nothing goes."""
    flat = torch.rand(groups.size, generator=torch.Generator().manual_seed(seed)) < 0.5
    for entry in groups.layout.entries:
        flat[entry.offset] = True
        if entry.name.endswith(whole) and whole:
            flat[entry.offset : entry.offset + entry.size] = True
    return ChannelMask(flat, groups, ratio=0.5, threshold=0.25, metadata={"method": "altermoma", "seed": seed})


def slices_gone(net: nn.Module, groups: ChannelGroups, flat: Tensor) -> dict[str, Tensor]:
    """Parameter -> bool: what stays, one removed group after the other."""
    found = {name: torch.ones_like(p, dtype=torch.bool) for name, p in net.named_parameters()}
    for group in (~flat).nonzero().flatten().tolist():
        for axis in groups.axes:
            if axis.tensor in found:
                found[axis.tensor].index_fill_(axis.axis, (axis.groups == group).nonzero().flatten(), False)
    return found


def test_views_and_counts(net: GatedNet) -> None:
    groups = groups_of(net)
    mask = random_mask(groups)
    assert torch.equal(torch.cat([mask[name] for name in mask]), mask.flat)
    assert mask.kept == {name: int(mask[name].sum()) for name in mask}
    assert mask.bits.numel() % 8 == 0
    assert repr(mask) == f"ChannelMask({mask.kept_total} of 33 channels kept, {1 - mask.kept_total / 33:.1%} pruned)"
    for wrong in (torch.ones(32, dtype=torch.bool), torch.ones(33)):
        with pytest.raises(MaskError, match=r"a channel mask is \[33\] torch.bool, not"):
            ChannelMask(wrong, groups, ratio=0.5)


@pytest.mark.parametrize("seed", range(5))
def test_the_mask_over_weights_removes_every_slice_and_nothing_else(net: GatedNet, seed: int) -> None:
    groups = groups_of(net)
    mask = random_mask(groups, seed)
    weights, expected = mask.weights(), slices_gone(net, groups, mask.flat)
    assert sorted(weights) == sorted(name for name in groups.axes_of if "running" not in name)
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert all(bool(kept.all()) for name, kept in expected.items() if name not in weights)
    assert weights.kept == {name: int(weights[name].sum()) for name in weights}
    assert weights.layout.size == sum(e.size for e in weights.layout.entries)
    assert (weights.unit, weights.ratio, weights.metadata["method"]) == ("weights", 0.5, "altermoma")
    assert weights.weights() is weights


def test_parameters_that_several_branches_reach_are_fusions_and_branches_lie_together(net: GatedNet) -> None:
    layout = random_mask(groups_of(net)).weights().layout
    assert layout.branches == ["camera", "lidar", "fusion"]
    assert [layout.range(branch).start for branch in layout.branches[1:]] == [
        layout.range(branch).stop for branch in layout.branches[:-1]
    ]
    for entry in layout.entries:
        inside = entry.name.split(".")[1] if entry.name.startswith("backbones.") else "fusion"
        assert entry.branch == inside, entry.name


@pytest.mark.parametrize("seed", range(3))
def test_a_model_under_the_mask_computes_what_gates_of_zero_compute(net: GatedNet, seed: int) -> None:
    """But for the layer norm: there the removed channels are zeros in front of it, and gates stand behind it."""
    mask = random_mask(groups_of(net), seed, whole="lidar.proj")
    gated, state = copy.deepcopy(net), {k: v.clone() for k, v in net.state_dict().items()}
    for (name, gate), kept in zip(gated.real_gates().items(), (mask[n] for n in mask), strict=True):
        gate.data *= kept
        assert name in SETS
    with fastalter.masked(net, mask), torch.no_grad():
        found, expected = net(BATCH), gated(BATCH)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
    assert not torch.allclose(found, net(BATCH), rtol=1e-3)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_where_layers_mask_on_load_their_biases_are_zeroed_in_place(
    net: GatedNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; the ops have a reference here."""
    mask = random_mask(groups_of(net))
    with fastalter.masked(net, mask), torch.no_grad():
        expected = net(BATCH)
    monkeypatch.setattr(context, "masks_on_load", lambda module, weight: context.is_plain_layer(module))
    with fastalter.masked(net, mask), torch.no_grad():
        assert bool(net.attend.weight.all())
        assert not bool(net.attend.bias.all())
        assert torch.allclose(net(BATCH), expected, rtol=1e-12, atol=0)


def test_a_pruned_model_stays_without_its_channels_in_training(net: GatedNet) -> None:
    groups = groups_of(net.train())
    mask = random_mask(groups)
    before, buffers = net.state_dict().keys(), {n: b.clone() for n, b in net.named_buffers()}
    pruned = fastalter.prune_model(net, mask)
    assert all(torch.equal(b, buffers[n]) for n, b in net.named_buffers())
    optimizer = torch.optim.AdamW(net.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        net.loss(BATCH).backward()
        optimizer.step()
    for name, kept in slices_gone(net, groups, mask.flat).items():
        assert not bool(net.get_parameter(name).detach()[~kept].any()), name
        assert bool(net.get_parameter(name).detach()[kept].any()), name
    assert net.state_dict().keys() == before
    assert pruned.held
    assert pruned.mask.unit == "weights"


def test_finetuning_says_how_much_of_the_removed_channels_was_not_zero(net: GatedNet) -> None:
    mask = random_mask(groups_of(net))
    gone = {name: ~kept for name, kept in slices_gone(net, groups_of(net), mask.flat).items()}
    dropped = sum(int(where.sum()) for where in gone.values())
    alive = sum(int((net.get_parameter(name)[where] != 0).sum()) for name, where in gone.items())
    assert 0 < alive < dropped  # the layer norm's bias is zero
    assert zero_remarks(net, mask) == [
        f"{alive:,} of the {dropped:,} weights that the mask drops were not zero; they are now"
    ]
    fastalter.prune_model(net, mask).remove()
    assert zero_remarks(net, mask) == []


# ---- files ----------------------------------------------------------------------------------------------------------


def saved(groups: ChannelGroups, path: Path) -> ChannelMask:
    groups.kept.append(Kept("head", 5, "it leaves the network"))
    mask = random_mask(groups)
    mask.save(path)
    return mask


def assert_same_groups(one: ChannelGroups, other: ChannelGroups) -> None:
    assert one.layout.entries == other.layout.entries
    for mine, theirs in ((one.axes, other.axes), (one.gates, other.gates), (one.counts, other.counts)):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert torch.equal(a.groups, b.groups)
            assert a.groups.dtype == b.groups.dtype
            assert {**vars(a), "groups": 0} == {**vars(b), "groups": 0}
    for name in ("layer_norms", "kept", "shapes", "buffers", "flops"):
        assert getattr(one, name) == getattr(other, name), name
    assert torch.equal(one.group_flops, other.group_flops)


@pytest.mark.parametrize("load", [fastalter.Mask.load, ChannelMask.load])
def test_files_come_back_equal(net: GatedNet, tmp_path: Path, load: Any) -> None:
    mask = saved(groups_of(net), tmp_path / "m")
    again = load(tmp_path / "m")
    assert type(again) is ChannelMask
    assert torch.equal(again.bits, mask.bits)
    assert (again.kept, again.ratio, again.threshold) == (mask.kept, mask.ratio, mask.threshold)
    assert again.metadata.items() >= mask.metadata.items()
    assert "groups" not in again.metadata
    assert_same_groups(again.groups, mask.groups)
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "m").read_bytes()


def test_a_mask_over_weights_is_no_channel_mask(net: GatedNet, tmp_path: Path) -> None:
    random_mask(groups_of(net)).weights().save(tmp_path / "m")
    assert type(fastalter.Mask.load(tmp_path / "m")) is fastalter.Mask
    with pytest.raises(MaskError, match="a mask over single weights; give one of scores with granularity='channel'"):
        ChannelMask.load(tmp_path / "m")


def test_positions_are_numbers_in_tensors_and_not_in_the_header(tmp_path: Path) -> None:
    wide = seeded(GatedNet)
    groups = groups_of(wide)
    saved(groups, tmp_path / "m")
    content = (tmp_path / "m").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    positions = sum(x.groups.numel() for x in [*groups.axes, *groups.gates, *groups.counts])
    assert len(content) - header <= 4 * positions + 8 * (len(groups.flops) + groups.size) + 64


def broken(path: Path, change: dict[str, Any], tensors: dict[str, Tensor | None]) -> Path:
    """The mask file with other groups in its JSON, or other tensors; None leaves one out."""
    found, document = read_artifact(path, "mask")
    document["groups"] = {k: v for k, v in {**document["groups"], **change}.items() if v is not None}
    kept = {name: tensor for name, tensor in {**found, **tensors}.items() if tensor is not None}
    write_artifact(path, document.pop("kind"), kept, document)
    return path


@pytest.mark.parametrize(
    ("change", "tensors"),
    [
        ({"axes": None}, {}),
        ({"axes": [[0, 0]]}, {}),
        ({"axes": [[999, 0]]}, {}),
        ({"axes": 5}, {}),
        ({"tensors": [["a", 3, False]]}, {}),
        ({"gates": [["x"]]}, {}),
        ({"flops": ["one", "two"]}, {}),
        ({"counts": [["m", "groups", 1]]}, {}),
        ({}, {"groups/axes": None}),
        ({}, {"groups/axes": torch.zeros(3, dtype=torch.int32)}),
        ({}, {"groups/gates": torch.zeros(3, dtype=torch.int32)}),
        ({}, {"groups/group_flops": torch.zeros(3)}),
    ],
)
def test_damaged_groups_are_refused(net: GatedNet, tmp_path: Path, change: Any, tensors: Any) -> None:
    saved(groups_of(net), tmp_path / "m")
    with pytest.raises(MaskError, match="its channel groups are damaged") as caught:
        fastalter.Mask.load(broken(tmp_path / "m", change, tensors))
    assert str(caught.value).startswith(str(tmp_path / "m"))


def test_groups_numbers_out_of_range_or_of_another_type_are_refused(net: GatedNet, tmp_path: Path) -> None:
    saved(groups_of(net), tmp_path / "m")
    axes = read_artifact(tmp_path / "m", "mask")[0]["groups/axes"]
    for value in (33, -2):
        with pytest.raises(MaskError, match=r"a group's number is not in -1\.\.32"):
            fastalter.Mask.load(
                broken(tmp_path / "m", {}, {"groups/axes": axes.index_fill(0, torch.tensor([4]), value)})
            )
    with pytest.raises(MaskError, match="damaged"):
        fastalter.Mask.load(broken(tmp_path / "m", {}, {"groups/axes": axes.float()}))
    with pytest.raises(MaskError, match="damaged"):
        fastalter.Mask.load(broken(tmp_path / "m", {}, {"groups/axes": axes.view(-1, 1)}))
