"""A sensor gone dark: what changes in a batch, what does not, and that models run on it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from fastalter.data import Batch, collate, example_batch
from fastalter.data.augment import normalise
from fastalter.data.drop import DROPPABLE, without
from fastalter.data.sample import CAMERAS
from fastalter.errors import DataError
from fastalter.models import build, config_of
from fastalter.models.bevfusion import BEVFusion

CONFIG = config_of("bevfusion-tiny")


@pytest.fixture(scope="module")
def batch() -> Batch:
    return example_batch(CONFIG, batch_size=2, seed=3)


@pytest.fixture(scope="module")
def model() -> BEVFusion:
    return build(CONFIG, seed=1).eval()


def black(batch: Batch) -> torch.Tensor:
    """A black picture as the loaders normalise it."""
    height, width = batch.images.shape[-2:]
    return normalise(Image.new("RGB", (width, height)))


def test_without_camera_every_image_is_black_and_nothing_else_changes(batch: Batch) -> None:
    dark = without(batch, "camera")
    assert torch.equal(dark.images, black(batch).expand_as(batch.images))
    assert all(getattr(dark, name) is value for name, value in vars(batch).items() if name != "images")


def test_without_lidar_no_scan_has_a_point(batch: Batch) -> None:
    dark = without(batch, "lidar")
    assert [list(points.shape) for points in dark.points] == [[0, 5], [0, 5]]
    assert all(len(points) for points in batch.points), "the given batch stays"
    assert all(getattr(dark, name) is value for name, value in vars(batch).items() if name != "points")


@pytest.mark.parametrize("name", CAMERAS)
def test_one_camera_alone_is_black(batch: Batch, name: str) -> None:
    before, dark, place = batch.images.clone(), without(batch, name), CAMERAS.index(name)
    assert torch.equal(batch.images, before), "the given batch stays"
    assert torch.equal(dark.images[:, place], black(batch).expand_as(dark.images[:, place]))
    others = [camera for camera in range(len(CAMERAS)) if camera != place]
    assert torch.equal(dark.images[:, others], before[:, others])


def test_unknown_sensors_and_rigs_are_refused(batch: Batch) -> None:
    with pytest.raises(DataError, match=r"no sensor 'radar' to drop; known: camera, lidar, CAM_FRONT, "):
        without(batch, "radar")
    four = replace(batch, images=batch.images[:, :4])
    with pytest.raises(DataError, match="cannot drop CAM_FRONT from images of 4 cameras"):
        without(four, "CAM_FRONT")
    assert torch.equal(without(four, "camera").images, without(batch, "camera").images[:, :4])


@torch.no_grad()
@pytest.mark.parametrize("sensor", DROPPABLE)
def test_the_model_runs_on_it_and_sees_the_difference(model: BEVFusion, batch: Batch, sensor: str) -> None:
    dark, light = model(without(batch, sensor)), model(batch)
    assert all(bool(torch.isfinite(value).all()) for value in dark.values())
    assert not torch.equal(dark["dense_heatmap"], light["dense_heatmap"])


@torch.no_grad()
def test_an_empty_scan_gives_the_map_of_no_voxels(model: BEVFusion, batch: Batch) -> None:
    """Zero everywhere, alone and beside a scan that has points."""
    assert not model.lidar_map(without(batch, "lidar")).any()
    half = replace(batch, points=[batch.points[0][:0], batch.points[1]])
    both, whole = model.lidar_map(half), model.lidar_map(batch)
    assert not both[0].any()
    assert whole[0].any()
    assert torch.allclose(both[1], whole[1], atol=1e-6)


def test_training_goes_on_where_a_scan_is_empty(batch: Batch) -> None:
    fresh = build(CONFIG, seed=1)
    sum(value for name, value in fresh.loss(without(batch, "lidar")).items() if "loss" in name).backward()
    gradients = {name: p.grad for name, p in fresh.named_parameters() if p.requires_grad}
    assert all(grad is not None and bool(torch.isfinite(grad).all()) for grad in gradients.values())
    encoder = [grad for name, grad in gradients.items() if name.startswith("encoders.lidar.")]
    assert encoder
    assert not any(bool(grad.any()) for grad in encoder), "nothing passes through an empty scan"


def test_dropping_and_collating_commute(batch: Batch) -> None:
    other = example_batch(CONFIG, batch_size=1, seed=4)
    for sensor in ("camera", "lidar", "CAM_BACK"):
        one = without(collate([batch, other]), sensor)
        two = collate([without(batch, sensor), without(other, sensor)])
        assert torch.equal(one.images, two.images)
        assert [len(points) for points in one.points] == [len(points) for points in two.points]
