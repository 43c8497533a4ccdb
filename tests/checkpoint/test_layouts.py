"""Published layouts: every key against the recorded map, every sparse layout, every other model by its name."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from fastalter.checkpoint.layouts import mmdet3d_key, read_layout, recognise, to_model, wrapper_prefix
from fastalter.checkpoint.sparse import TO_NATIVE, decide_layout, inverse
from fastalter.errors import CheckpointError
from tests.checkpoint.files import FROM_NATIVE, MIT, MMDET3D, RESNET, key_map, manifest_state
from tests.ground_truth import needs_ground_truth, root

BLOCK = "encoders.lidar.backbone.encoder_layers.encoder_layer1.0"


def test_the_rules_give_the_recorded_map_key_by_key() -> None:
    recorded = key_map()
    assert len(recorded) == 582
    assert {key: mmdet3d_key(key) for key in recorded} == recorded


def test_the_older_converted_file_spells_the_view_transform_another_way() -> None:
    assert mmdet3d_key("vtransform.depthnet.0.weight") == "encoders.camera.vtransform.depthnet.0.weight"


def test_keys_of_no_module_have_no_counterpart() -> None:
    assert mmdet3d_key("data_preprocessor.mean") is None
    assert mmdet3d_key("bbox_head.decoder.0.other.weight") == "heads.object.decoder.0.other.weight"


def test_the_published_families_are_recognised_and_agree() -> None:
    mit, theirs = manifest_state(MIT), manifest_state(MMDET3D)
    layouts = read_layout(mit), read_layout(theirs)
    assert [layout.family for layout in layouts] == ["mit", "mmdet3d"]
    assert [layout.sparse for layout in layouts] == ["spconv1", "spconv2"]
    assert not layouts[0].notes
    assert not layouts[1].notes
    converted = to_model(mit, layouts[0]), to_model(theirs, layouts[1])
    assert list(converted[0]) == list(converted[1]) == list(mit)
    assert all(converted[0][key].shape == converted[1][key].shape for key in mit)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrapper_prefixes_are_seen_through(prefix: str) -> None:
    state = {prefix + key: value for key, value in manifest_state(MIT).items()}
    assert wrapper_prefix(state) == prefix
    layout = read_layout(state)
    assert [entry.file_key for entry in layout.entries] == list(state)
    assert [entry.key for entry in layout.entries] == list(manifest_state(MIT))


def test_a_prefix_on_some_keys_only_is_none() -> None:
    assert wrapper_prefix(["module.a", "b"]) == ""


def test_two_keys_for_one_weight_are_refused() -> None:
    state = manifest_state(MMDET3D)
    state["vtransform.dx"] = state["view_transform.dx"]
    with pytest.raises(CheckpointError, match=r"two of its keys stand for encoders\.camera\.vtransform\.dx"):
        read_layout(state)


def sparse_state(
    layout: str, widths: Iterable[tuple[int, int]], kernel: tuple[int, ...] = (3, 3, 3)
) -> dict[str, Tensor]:
    """Weights of one block each from `in` to `out` channels, with their norms."""
    state = {}
    for i, (inside, out) in enumerate(widths):
        native = torch.empty(out, *kernel, inside)
        state[f"{BLOCK}{i}.conv1.weight"] = native.permute(FROM_NATIVE[layout])
        state[f"{BLOCK}{i}.bn1.weight"] = torch.empty(out)
    return state


@pytest.mark.parametrize("layout", TO_NATIVE)
@pytest.mark.parametrize("usual", TO_NATIVE)
@pytest.mark.parametrize("widths", [[(16, 32)], [(16, 16), (16, 32), (32, 32)], [(3, 3), (3, 4)], [(5, 16), (16, 16)]])
def test_one_telling_weight_settles_the_file(layout: str, usual: str, widths: list[tuple[int, int]]) -> None:
    assert decide_layout(sparse_state(layout, widths), usual) == (layout, [])


def test_weights_that_tell_nothing_leave_it_to_the_family() -> None:
    square = sparse_state("spconv1", [(16, 16), (32, 32)])
    assert decide_layout(square, "spconv1")[0] == "spconv1"
    assert decide_layout(square, "spconv2.1")[0] == "spconv2.1"
    layout, notes = decide_layout(sparse_state("spconv2", [(3, 3)]), "spconv2")
    assert layout == "spconv2"
    assert notes == ["the shapes of the sparse weights fit spconv1 and spconv2.1 and spconv2: taken as spconv2"]


def test_the_family_never_overrules_the_shapes() -> None:
    layout, notes = decide_layout(sparse_state("spconv1", [(16, 16)]), "spconv2")
    assert layout == "spconv1"
    assert "spconv1 and spconv2.1" in notes[0]


def test_mixed_and_unknown_sparse_layouts_are_refused() -> None:
    mixed = sparse_state("spconv1", [(16, 32)]) | {
        key.replace("0.conv", "9.conv").replace("0.bn", "9.bn"): value
        for key, value in sparse_state("spconv2", [(16, 32)]).items()
    }
    with pytest.raises(CheckpointError, match="mixed layouts"):
        decide_layout(mixed, "spconv1")
    twice = {
        key: value.permute(4, 0, 1, 2, 3) if value.dim() == 5 else value
        for key, value in sparse_state("spconv2", [(16, 32)]).items()
    }
    with pytest.raises(CheckpointError, match="no known layout"):
        decide_layout(twice, "spconv1")


@pytest.mark.parametrize("layout", TO_NATIVE)
def test_axes_are_undone_by_their_inverse(layout: str) -> None:
    native = torch.randn(2, 3, 3, 1, 4)
    stored = native.permute(FROM_NATIVE[layout])
    assert torch.equal(stored.permute(TO_NATIVE[layout]), native)
    assert inverse(TO_NATIVE[layout]) == FROM_NATIVE[layout]


OTHERS = {
    "BEVFusion-pku": ["img_backbone.cb_modules.0.patch_embed.a", "lift_splat_shot_vis.dx", "pts_middle_encoder.a"],
    "an OpenPCDet": ["backbone_3d.conv1.0.weight", "dense_head.a"],
    "BEVFusion-R": ["encoders.camera.backbone.conv1.weight", "encoders.radar.backbone.a", "fuser.0.weight"],
    "for map segmentation": ["encoders.camera.neck.a", "encoders.lidar.backbone.a", "fuser.0.weight", "heads.map.a"],
    "with PointPillars": ["encoders.camera.backbone.a", "encoders.lidar.backbone.pts_voxel_encoder.a"],
    "a camera-only BEVFusion": ["encoders.camera.backbone.a", "decoder.a", "heads.object.a"],
    "a LiDAR-only BEVFusion": ["encoders.lidar.backbone.a", "decoder.a", "heads.object.a"],
    "a LiDAR-only mmdet3d": ["pts_middle_encoder.a", "pts_backbone.a", "bbox_head.a"],
    "an image backbone": ["backbone.patch_embed.a", "backbone.norm1.weight"],
    "AVOD": ["bev_vgg_pyr/conv1/conv1_1/weights"],
    "an unknown architecture (its keys: conv1.weight, fc.bias": ["conv1.weight", "fc.bias"],
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_models_are_refused_by_name(what: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        recognise(OTHERS[what])
    assert what in str(caught.value)
    assert "fastalter reads BEVFusion camera+LiDAR detection" in str(caught.value)


@needs_ground_truth
def test_every_recorded_model_is_read_or_refused_by_name() -> None:
    read = set()
    for path in sorted((root() / "manifests").glob("*.json")):
        content = json.loads(path.read_text())
        if "tensors" not in content:
            continue
        try:
            recognise(content["tensors"])
            read.add(path.name)
        except CheckpointError as error:
            assert "unknown architecture" not in str(error), path  # noqa: PT017
    assert read == {MIT, MMDET3D, RESNET, RESNET.replace("p1", "p075")}
