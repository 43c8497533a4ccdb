"""The random batch: in the form of a real one, a function of its seed, and named for what it is."""

from __future__ import annotations

import pytest
import torch

from fastalter.data import check_batch, example_batch, load
from fastalter.data.draw import project
from fastalter.models.config import BEVFusionConfig, LidarConfig

FULL = BEVFusionConfig().with_image_size(64, 176)
SMALL = BEVFusionConfig(lidar=LidarConfig(point_cloud_range=(-24.0, -24.0, -5.0, 24.0, 24.0, 3.0))).with_image_size(
    64, 176
)


@pytest.mark.parametrize("config", [FULL, SMALL])
def test_passes_the_check_with_every_class_in_range(config: BEVFusionConfig) -> None:
    batch = example_batch(config, batch_size=3, seed=1)
    check_batch(batch, config)
    assert batch.images.shape == (3, 6, 3, 64, 176)
    assert all(set(labels.tolist()) == set(range(10)) for labels in batch.labels)
    reach = config.lidar.point_cloud_range[3]
    assert all(float(boxes[:, :2].abs().max()) < reach for boxes in batch.boxes)
    assert all(len(points) > 1000 for points in batch.points)


def test_a_function_of_seed_and_index() -> None:
    one, again = load("example", config=SMALL, seed=5), load("example", config=SMALL, seed=5)
    assert torch.equal(one[2].images, again[2].images)
    assert torch.equal(one[2].points[1], again[2].points[1])
    assert not torch.equal(one[0].images, one[1].images)
    assert not torch.equal(one[0].images, load("example", config=SMALL, seed=6)[0].images)


def test_says_that_it_is_random() -> None:
    assert "random" in load("example", config=SMALL).description
    assert load("example", config=SMALL).synthetic
    assert example_batch(SMALL, seed=3).tokens == ["random-3-0-0", "random-3-0-1"]


def test_cameras_see_the_scene() -> None:
    batch = example_batch(SMALL, batch_size=1)
    pixels, depths = project(batch, 0, batch.points[0][:, :3])
    visible = (depths > 1) & (pixels >= 0).all(-1) & (pixels < torch.tensor([176.0, 64.0])).all(-1)
    assert int(visible.any(0).sum()) > 0.3 * len(batch.points[0])
    assert bool(visible.any(1).all())


def test_boxes_hold_points() -> None:
    batch = example_batch(SMALL, batch_size=1)
    distance = torch.cdist(batch.boxes[0][:, :3], batch.points[0][:, :3])
    nearby = (distance < batch.boxes[0][:, 3:6].norm(dim=-1, keepdim=True) / 2 + 1e-3).sum(1)
    assert int(nearby.min()) >= 32
