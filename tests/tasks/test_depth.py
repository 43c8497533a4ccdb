"""Depth supervision: targets against a projection written down here, and what the loss reaches."""

from __future__ import annotations

import math

import pytest
import torch

import fastalter
from fastalter.data import Batch, example_batch
from fastalter.models.bevfusion import BEVFusion
from fastalter.models.view_transform import DepthLSS
from fastalter.tasks.detection.depth import UNSUPERVISED, depth_targets, loss_with_depth

CONFIG = fastalter.models.config_of("bevfusion-tiny").with_sensors("camera")


@pytest.fixture(scope="module")
def model() -> BEVFusion:
    return fastalter.models.build(CONFIG, seed=0)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return example_batch(CONFIG, batch_size=2, seed=1)


def view_of(model: BEVFusion) -> DepthLSS:
    view = model.get_submodule("encoders.camera.vtransform")
    assert isinstance(view, DepthLSS)
    return view


def test_targets_are_the_bins_of_the_nearest_points(model: BEVFusion, batch: Batch) -> None:
    targets = depth_targets(batch, view_of(model))
    assert targets.shape == (2, 6, 8, 22)
    nearest: dict[tuple[int, int, int, int], float] = {}
    for sample, points in enumerate(batch.points):
        for camera in range(6):
            for x, y, z in points[:, :3].double().tolist():
                place = batch.lidar2image[sample, camera].double() @ torch.tensor([x, y, z, 1.0], dtype=torch.float64)
                depth = float(place[2])
                if depth <= 0:
                    continue
                pixel = batch.image_aug[sample, camera].double() @ torch.tensor(
                    [float(place[0]) / depth, float(place[1]) / depth, depth, 1.0], dtype=torch.float64
                )
                u, v = float(pixel[0]), float(pixel[1])
                if 0 <= u < 176 and 0 <= v < 64:
                    cell = (sample, camera, int(v) // 8, int(u) // 8)
                    nearest[cell] = min(depth, nearest.get(cell, math.inf))
        if sample == 0:
            break  # one sample of points is enough for a slow loop
    wrong = 0
    for camera in range(6):
        for row in range(8):
            for column in range(22):
                depth = nearest.get((0, camera, row, column), math.inf)
                bin_index = round(depth - 1.0) if math.isfinite(depth) else -1
                expected = bin_index if 0 <= bin_index < 34 else UNSUPERVISED
                wrong += int(targets[0, camera, row, column]) != expected
    assert wrong <= 3  # float32 may tip what lies on an edge of a pixel or a bin
    assert 200 < int((targets[0] != UNSUPERVISED).sum()) < 6 * 8 * 22


def test_the_loss_is_the_cross_entropy_and_reaches_the_depth_bins(model: BEVFusion, batch: Batch) -> None:
    view = view_of(model)
    with torch.no_grad():
        torch.nn.init.zeros_(view.depthnet[-1].weight)
        torch.nn.init.zeros_(view.depthnet[-1].bias)
    losses = loss_with_depth(model, batch, weight=2.0)
    assert float(losses["loss_depth"].detach()) == pytest.approx(2 * math.log(34), rel=1e-5)  # all bins alike
    assert {"loss_heatmap", "loss_cls", "loss_bbox"} <= set(losses)
    losses["loss_depth"].backward()
    grad = view.depthnet[-1].bias.grad
    assert float(grad[:34].abs().max()) > 0
    assert float(grad[34:].abs().max()) == 0  # the context is none of its business
    assert not view.depthnet._forward_hooks


def test_without_points_there_is_nothing_to_supervise(model: BEVFusion, batch: Batch) -> None:
    empty = Batch(**{**vars(batch), "points": [points[:0] for points in batch.points]})
    assert bool((depth_targets(empty, view_of(model)) == UNSUPERVISED).all())
    assert float(loss_with_depth(model, empty)["loss_depth"].detach()) == 0
