"""The configuration read off weights equals the one the weights were made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastalter.checkpoint.config_text import config_from_text, config_to_text
from fastalter.checkpoint.infer import INFERRED_NAME, hidden, infer_config
from fastalter.checkpoint.layouts import read_layout, to_model
from fastalter.errors import CheckpointError
from fastalter.models import build, config_of, list_models
from fastalter.models.config import (
    BEVFusionConfig,
    CameraConfig,
    DecoderConfig,
    HeadConfig,
    LidarConfig,
    ResNetConfig,
    SwinConfig,
    ViewTransformConfig,
)
from tests.checkpoint.files import MIT, MMDET3D, RESNET, manifest_state

TINY = config_of("bevfusion-tiny")
VIEW = "encoders.camera.vtransform."


def state_of(config: BEVFusionConfig) -> dict[str, Tensor]:
    """Without memory, but for the view transform's constants."""
    with torch.device("meta"):
        state: dict[str, Tensor] = build(config).state_dict()
    from fastalter.models.view_transform import DepthLSS

    camera = config.camera
    own = DepthLSS(camera.view_transform, camera.neck_channels, camera.image_size, camera.feature_stride).state_dict()
    return state | {VIEW + name: own[name] for name in ("dx", "bx", "nx", "frustum")}


@pytest.mark.parametrize(("manifest", "convention"), [(MIT, "mit"), (MMDET3D, "mmdet3d")])
def test_the_published_models_give_the_default_configuration(manifest: str, convention: str) -> None:
    state = manifest_state(manifest)
    found = infer_config(to_model(state, read_layout(state)), convention, known=[BEVFusionConfig()])  # type: ignore[arg-type]
    assert found == replace(BEVFusionConfig(), box_convention=convention)  # type: ignore[arg-type]
    unnamed = infer_config(to_model(state, read_layout(state)))
    assert unnamed == replace(BEVFusionConfig(), name=INFERRED_NAME)


def test_a_resnet_is_told_from_a_swin_transformer() -> None:
    state = manifest_state(RESNET)
    known = [config_of(name) for name in list_models()]
    assert infer_config(to_model(state, read_layout(state)), known=known) == config_of(
        "bevfusion-mit-resnet101-voxelnet"
    )


@pytest.mark.parametrize("name", ["bevfusion-tiny", "bevfusion-tiny-resnet"])
def test_a_tiny_model_is_found_among_the_registered(name: str) -> None:
    known = [config_of(name) for name in list_models()]
    assert infer_config(state_of(config_of(name)), known=known) == config_of(name)


def test_the_image_size_does_not_make_another_model() -> None:
    other = TINY.with_image_size(128, 352)
    assert infer_config(state_of(other), known=[BEVFusionConfig(), TINY]) == other


ODD = BEVFusionConfig(
    name="odd",
    camera=CameraConfig(
        SwinConfig(embed_dims=8, depths=(1, 2, 1, 3), num_heads=(1, 2, 2, 4), window_size=5, mlp_ratio=2),
        neck_channels=24,
        view_transform=ViewTransformConfig(
            out_channels=12,
            xbound=(-25.6, 25.6, 0.8),
            ybound=(-12.8, 38.4, 0.8),
            zbound=(-8.0, 8.0, 16.0),
            dbound=(2.0, 26.0, 0.75),
            downsample=1,
            depth_channels=(2, 6, 10),
        ),
        image_size=(96, 160),
    ),
    lidar=LidarConfig(
        in_channels=4,
        voxel_size=(0.1, 0.1, 0.2),
        point_cloud_range=(-25.6, -12.8, -5.0, 25.6, 38.4, 3.0),
        sparse_shape=(512, 512, 41),
        encoder_channels=((4, 6), (6, 6, 10), (10, 10, 10, 12), (12,)),
        output_channels=20,
    ),
    fuser_channels=28,
    decoder=DecoderConfig(
        channels=(14, 18), layers=(1, 2), strides=(1, 4), neck_channels=(22, 26), upsample_strides=(1, 4)
    ),
    head=HeadConfig(num_classes=3, hidden_channels=16, ffn_channels=40),
)


ODD_RESNET = replace(
    ODD, camera=replace(ODD.camera, backbone=ResNetConfig(layers=(2, 1, 3), base_channels=4, out_indices=(1, 2)))
)


@pytest.mark.parametrize("config", [ODD, ODD_RESNET])
def test_every_number_that_weights_tell_is_read(config: BEVFusionConfig) -> None:
    assert infer_config(state_of(config)) == replace(config, name=INFERRED_NAME)


def test_basic_residual_blocks_are_refused() -> None:
    state = {key: value for key, value in state_of(ODD_RESNET).items() if ".conv3." not in key}
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv3\.weight is missing"):
        infer_config(state)


@pytest.mark.parametrize(
    "config", [BEVFusionConfig(), TINY, ODD, ODD_RESNET, replace(TINY, head=replace(TINY.head, dropout=0.0))]
)
def test_a_carried_configuration_says_what_weights_do_not(config: BEVFusionConfig) -> None:
    carried = replace(config, name="mine", head=replace(config.head, num_proposals=17))
    text = config_to_text(carried)
    assert config_from_text(text) == carried
    assert infer_config(state_of(config), carried=config_from_text(text), known=[config]) == carried


def test_hidden_fields_are_not_read_off_weights() -> None:
    lidar = replace(TINY.lidar, max_points=3, max_voxels=(1, 2))
    head = replace(TINY.head, num_proposals=5, num_heads=4, code_weights=(1.0,) * 10, nms_kernel_size=5)
    other = replace(TINY, name="other", lidar=lidar, head=head)
    assert hidden(TINY, other) == other
    assert infer_config(state_of(TINY), known=[other]) == other


def test_a_carried_configuration_that_contradicts_the_weights_is_refused() -> None:
    carried = replace(TINY, fuser_channels=99)
    with pytest.raises(CheckpointError, match="configuration it carries is not that of its weights"):
        infer_config(state_of(TINY), carried=carried)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "{",
        "3",
        '{"nothing": 1}',
        '{"camera": 3}',
        '{"fuser_channels": "wide"}',
        '{"lidar": {"voxel_size": [true]}}',
        "[" * 9999,
    ],
)
def test_a_text_that_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match="fastalter_config"):
        config_from_text(text)


DAMAGE: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "frustum is missing": lambda s: s.pop(f"{VIEW}frustum"),
    "dx is missing": lambda s: s.pop(f"{VIEW}dx"),
    "make no grid": lambda s: s.update({f"{VIEW}nx": torch.tensor([10**9, 1, 1])}),
    "no grid": lambda s: s.update({f"{VIEW}dx": torch.tensor([0.0, 1, 1])}),
    "not three numbers": lambda s: s.update({f"{VIEW}bx": torch.tensor([float("nan"), 1, 1])}),
    "ascending depths": lambda s: s.update(
        {
            f"{VIEW}frustum": torch.cat(
                [s[f"{VIEW}frustum"][..., :2], torch.zeros(*s[f"{VIEW}frustum"].shape[:3], 1)], -1
            )
        }
    ),
    "images in": lambda s: s.update({f"{VIEW}frustum": s[f"{VIEW}frustum"] * 1.3}),
    "fuser.0.weight is missing": lambda s: s.pop("fuser.0.weight"),
    "should have 4 dimensions": lambda s: s.update({"fuser.0.weight": torch.zeros(3)}),
}


@pytest.mark.parametrize("complaint", DAMAGE)
def test_weights_that_do_not_say_enough_are_refused(complaint: str) -> None:
    state = state_of(TINY)
    DAMAGE[complaint](state)
    with pytest.raises(CheckpointError, match=complaint):
        infer_config(state)
