"""The configuration: its round trip, its helpers, the names it is known by, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

import fastalter.models
from fastalter.errors import ModelError
from fastalter.models.config import BEVFusionConfig, ViewTransformConfig, tiny_config
from fastalter.models.view_transform import DepthLSS


@pytest.mark.parametrize("config", [BEVFusionConfig(), tiny_config(), tiny_config().at_quarter_resolution()])
def test_round_trip_through_json(config: BEVFusionConfig) -> None:
    assert BEVFusionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_missing_entries_take_their_defaults() -> None:
    config = BEVFusionConfig.from_dict({"name": "mine", "camera": {"neck_channels": 64}})
    expected = replace(BEVFusionConfig(), name="mine", camera=replace(BEVFusionConfig().camera, neck_channels=64))
    assert config == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"camera": {"backbone": {"depth": 3}}}, r"config\.camera\.backbone has no entry 'depth'; it knows depths, "),
        ({"lidar": [1, 2]}, r"config\.lidar is list, not a dictionary of LidarConfig entries"),
    ],
)
def test_entries_that_no_configuration_has_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        BEVFusionConfig.from_dict(values)


def test_quarter_resolution_halves_the_image_and_the_maps() -> None:
    config = BEVFusionConfig().at_quarter_resolution()
    assert config.camera.image_size == (128, 352)
    assert config.camera.view_transform.xbound == config.camera.view_transform.ybound == (-54.0, 54.0, 0.6)
    assert config.lidar.voxel_size == (0.15, 0.15, 0.2)
    assert config.lidar.sparse_shape == (720, 720, 41)


def test_image_size_is_all_that_with_image_size_changes() -> None:
    config = tiny_config().with_image_size(32, 64)
    assert config.camera.image_size == (32, 64)
    assert config.with_image_size(64, 176) == tiny_config()


def test_models_are_known_by_name() -> None:
    published = ["bevfusion-mit-resnet101-voxelnet", "bevfusion-mit-swint-voxelnet"]
    assert fastalter.models.list() == [*published, "bevfusion-tiny", "bevfusion-tiny-resnet"]
    for name in fastalter.models.list():
        assert fastalter.models.config_of(name).name == name
    with pytest.raises(ModelError, match="no model 'resnet'; choose one of bevfusion-mit-resnet101-voxelnet, bev"):
        fastalter.models.build("resnet")


def test_maps_of_different_grids_are_refused() -> None:
    config = tiny_config()
    lidar = replace(config.lidar, sparse_shape=(160, 160, 41))
    with pytest.raises(ModelError, match=r"camera map has \[30, 30\] cells, the lidar map has \[20, 20\] cells"):
        fastalter.models.build(replace(config, lidar=lidar))


@pytest.mark.parametrize(
    ("config", "image_size", "stride", "message"),
    [
        (ViewTransformConfig(), (60, 96), 8, "image size 60x96 is no multiple of the feature stride 8"),
        (ViewTransformConfig(), (64, 96), 16, "cannot meet features of stride 16"),
        (ViewTransformConfig(downsample=3), (64, 96), 8, "view_transform.downsample is 3; it must be 1 or 2"),
        (ViewTransformConfig(zbound=(-10.0, 10.0, 5.0)), (64, 96), 8, "zbound makes 4 cells"),
    ],
)
def test_view_transform_refuses_what_it_cannot_do(
    config: ViewTransformConfig, image_size: tuple[int, int], stride: int, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        DepthLSS(config, 32, image_size, stride)
