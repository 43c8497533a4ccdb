"""Batches that must not reach a model, each refused in one line that names the sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fastalter.data import Batch, check_batch, collate, example_batch
from fastalter.errors import DataError
from fastalter.models.config import BEVFusionConfig

CONFIG = BEVFusionConfig().with_image_size(32, 64)


@pytest.fixture
def batch() -> Batch:
    return example_batch(CONFIG, batch_size=2, seed=0)


def set_value(name: str, place: tuple[int, ...], value: float) -> Callable[[Batch], None]:
    """Put one value into the second sample's tensor of that name."""

    def damage(batch: Batch) -> None:
        getattr(batch, name)[1][place] = value

    return damage


def swap(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Batch], None]:
    def damage(batch: Batch) -> None:
        value = getattr(batch, name)
        if isinstance(value, list):
            value[1] = change(value[1])
        else:
            setattr(batch, name, change(value))

    return damage


SECOND = "sample random-0-0-1: "
BAD: dict[str, tuple[Callable[[Batch], None], str]] = {
    "label too high": (set_value("labels", (0,), 10), SECOND + "label 10 is outside -1..9"),
    "label too low": (set_value("labels", (3,), -2), SECOND + "label -2 is outside -1..9"),
    "label of another type": (swap("labels", torch.Tensor.float), SECOND + "labels are torch.float32"),
    "box position": (set_value("boxes", (2, 0), math.nan), SECOND + "1 values of boxes are NaN or Inf"),
    "box yaw": (set_value("boxes", (2, 6), math.inf), SECOND + "1 values of boxes are NaN or Inf"),
    "box size": (set_value("boxes", (2, 4), 0.0), SECOND + "box 2 has size"),
    "infinite velocity": (set_value("boxes", (2, 7), math.inf), SECOND + "a velocity is infinite"),
    "points": (set_value("points", (5, 1), math.nan), SECOND + "1 values of points are NaN or Inf"),
    "image": (set_value("images", (0, 1, 2, 3), math.inf), SECOND + "1 values of images are NaN or Inf"),
    "matrix": (set_value("lidar2image", (0, 1, 2), math.nan), "lidar2image holds NaN or Inf"),
    "four columns": (swap("points", lambda t: t[:, :4]), SECOND + r"points have shape \[8816, 4\]"),
    "no points": (swap("points", lambda t: t[:0]), SECOND + "no LiDAR point within"),
    "seven columns": (swap("boxes", lambda t: t[:, :7]), SECOND + r"boxes \[20, 7\]"),
    "fewer labels": (swap("labels", lambda t: t[1:]), SECOND + r"boxes \[20, 9\] and labels \[19\]"),
    "image size": (swap("images", lambda t: t[..., :16, :]), "images are 16x64, the model takes 32x64"),
    "one camera": (swap("images", lambda t: t[:, 0]), r"images have shape \[2, 3, 32, 64\]"),
    "matrix of 3x3": (swap("image_aug", lambda t: t[..., :3, :3]), r"image_aug has shape \[2, 6, 3, 3\]"),
    "matrices of another batch": (swap("lidar_aug", lambda t: t[:1]), r"lidar_aug has shape \[1, 4, 4\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(batch: Batch, case: str) -> None:
    check_batch(batch, CONFIG)
    damage, message = BAD[case]
    damage(batch)
    with pytest.raises(DataError, match=message) as caught:
        check_batch(batch, CONFIG)
    assert "\n" not in str(caught.value)


def test_lists_of_another_length(batch: Batch) -> None:
    with pytest.raises(DataError, match="1 points for 2 samples"):
        check_batch(replace(batch, points=batch.points[:1]), CONFIG)
    check_batch(replace(batch, tokens=[]), CONFIG)  # names are optional


def test_no_box_at_all_names_the_samples(batch: Batch) -> None:
    batch.boxes, batch.labels = [b[:0] for b in batch.boxes], [x[:0] for x in batch.labels]
    with pytest.raises(DataError, match="batch of sample random-0-0-0, sample random-0-0-1: no box of a known class"):
        check_batch(batch, CONFIG)


def test_only_ignored_or_far_boxes_count_as_none(batch: Batch) -> None:
    batch.labels = [torch.full_like(labels, -1) for labels in batch.labels]
    with pytest.raises(DataError, match="no box of a known class"):
        check_batch(batch, CONFIG)
    batch.labels = [torch.zeros_like(labels) for labels in batch.labels]
    for boxes in batch.boxes:
        boxes[:, 1] = 60.0
    with pytest.raises(DataError, match=r"no box of a known class within x, y of \[-54, 54\] x \[-54, 54\] m"):
        check_batch(batch, CONFIG)


def test_ignored_labels_unknown_velocities_and_an_empty_sample_are_legal(batch: Batch) -> None:
    batch.labels[0][0] = -1
    batch.boxes[0][1, 7:] = math.nan
    batch.boxes[1], batch.labels[1] = batch.boxes[1][:0], batch.labels[1][:0]
    check_batch(batch, CONFIG)


def test_samples_of_different_image_sizes_do_not_share_a_batch(batch: Batch) -> None:
    other = example_batch(BEVFusionConfig().with_image_size(64, 64), batch_size=1)
    with pytest.raises(DataError, match="cannot share a batch"):
        collate([batch, other])


def test_moving_a_batch_keeps_integers(batch: Batch) -> None:
    double = batch.to(dtype=torch.float64)
    assert double.images.dtype == double.points[0].dtype == double.boxes[1].dtype == torch.float64
    assert double.labels[0].dtype == torch.int64
    assert double.tokens == batch.tokens
