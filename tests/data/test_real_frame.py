"""The real nuScenes frame: boxes, points and projections against what was recorded with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastalter.data import CLASS_NAMES, PrepareOptions, Sample, open_frames, prepare
from fastalter.data.draw import project
from fastalter.data.prepare import boxes_in_range
from fastalter.data.sample import CAMERAS, read_points
from fastalter.data.views import make_view
from fastalter.models.config import BEVFusionConfig

RANGE = BEVFusionConfig().lidar.point_cloud_range


@pytest.fixture(scope="module")
def folder(ground_truth: Path) -> Path:
    return ground_truth / "data" / "nuscenes_frame"


@pytest.fixture(scope="module")
def sample(folder: Path) -> Sample:
    return open_frames(f"frames:{folder}", keep_unseen=True)[0]


@pytest.fixture(scope="module")
def info(folder: Path) -> dict[str, Any]:
    frame: dict[str, Any] = json.loads((folder / "info.json").read_text())["data_list"][0]
    return frame


def points_inside(points: Tensor, box: Tensor) -> int:
    offset = points[:, :3].double() - box[:3]
    cos, sin = box[6].cos(), box[6].sin()
    along, across = cos * offset[:, 0] + sin * offset[:, 1], cos * offset[:, 1] - sin * offset[:, 0]
    inside = (along.abs() <= box[3] / 2) & (across.abs() <= box[4] / 2) & (offset[:, 2].abs() <= box[5] / 2)
    return int(inside.sum())


def test_number_of_boxes(sample: Sample, folder: Path) -> None:
    assert sample.boxes.shape == (68, 9)
    assert int(boxes_in_range(sample.boxes, RANGE).sum()) == 53
    assert len(open_frames(f"frames:{folder}")[0].boxes) == 65  # three that neither LiDAR nor radar hit
    assert int(sample.boxes[:, 7].isnan().sum()) == 2


def test_boxes_hold_as_many_points_as_recorded(sample: Sample, folder: Path) -> None:
    records = json.loads((folder / "gt_boxes.json").read_text())["boxes"]
    points = read_points(sample)
    assert points.shape == (34688, 5)
    assert float(points[:, 4].abs().max()) == 0.0
    counts = [points_inside(points, box) for box in sample.boxes]
    agree = sum(count == record["num_lidar_pts"] for count, record in zip(counts, records, strict=True))
    assert agree >= 60


def test_instances_of_the_info_file_are_the_same_boxes(sample: Sample, folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        if path.name != "gt_boxes.json":
            (tmp_path / path.name).symlink_to(path)
    other = open_frames(f"frames:{tmp_path}", keep_unseen=True)[0]
    assert len(other.boxes) == 69  # one of no known class
    known = other.labels >= 0
    assert other.labels[known].tolist() == sample.labels.tolist()
    torch.testing.assert_close(other.boxes[known], sample.boxes, equal_nan=True)


def test_box_centres_project_where_the_recorded_ones_do(sample: Sample, info: dict[str, Any]) -> None:
    batch = prepare(sample, PrepareOptions((256, 704)))
    pixels, depths = project(batch, 0, batch.boxes[0][:, :3])
    looked_at = 0
    for camera, name in enumerate(CAMERAS):
        for instance in info["cam_instances"][name]:
            if instance["bbox_label_3d"] < 0:
                continue
            u, v = instance["center_2d"]
            expected = torch.tensor([0.48 * u - 32, 0.48 * v - 176], dtype=torch.float64)
            distance = (pixels[camera] - expected).norm(dim=-1) + (depths[camera] - instance["depth"]).abs()
            assert float(distance.min()) < 0.05
            looked_at += 1
    assert looked_at > 60


def test_an_augmented_view_shows_the_same_scene(sample: Sample) -> None:
    options = PrepareOptions((256, 704))
    plain, view = make_view(sample, 0, 0, options, seed=3), make_view(sample, 0, 1, options, seed=3)
    assert not torch.equal(plain.lidar_aug, view.lidar_aug)
    undone = view.points[0].double()
    undone = undone[:, :3] @ torch.linalg.inv(view.lidar_aug[0].double())[:3, :3].T
    undone = undone + torch.linalg.inv(view.lidar_aug[0].double())[:3, 3]
    torch.testing.assert_close(undone, plain.points[0][:, :3].double(), atol=1e-4, rtol=0)
    for camera in range(6):
        one, depth = original_pixels(plain, camera)
        two, other_depth = original_pixels(view, camera)
        seen = (depth > 1) & (one > 0).all(-1) & (one < torch.tensor([1600.0, 900.0])).all(-1)
        assert int(seen.sum()) > 2000
        torch.testing.assert_close(other_depth, depth, atol=1e-3, rtol=0)
        assert float((one - two)[seen].abs().max()) < 0.02


def original_pixels(batch: Any, camera: int) -> tuple[Tensor, Tensor]:
    """Pixels of the original image that the batch's points fall on: the image augmentation undone."""
    pixels, depths = project(batch, 0, batch.points[0][:, :3])
    undo = torch.linalg.inv(batch.image_aug[0, camera].double())
    return pixels[camera] @ undo[:2, :2].T + undo[:2, 3], depths[camera]


def test_points_and_boxes_are_cut_to_the_range(sample: Sample) -> None:
    batch = prepare(sample, PrepareOptions((64, 176), RANGE))
    assert len(batch.boxes[0]) == len(batch.labels[0]) == 53
    low, high = batch.points[0][:, :3].amin(0), batch.points[0][:, :3].amax(0)
    assert 30000 < len(batch.points[0]) < 34688
    assert bool((low > torch.tensor(RANGE[:3])).all())
    assert bool((high < torch.tensor(RANGE[3:])).all())


def test_labels_follow_the_heads_class_order(sample: Sample, folder: Path) -> None:
    records = json.loads((folder / "gt_boxes.json").read_text())["boxes"]
    assert [CLASS_NAMES[label] for label in sample.labels] == [record["name"] for record in records]
    assert np.bincount(sample.labels, minlength=10).sum() == 68
