"""What a batch must be before it goes into a model; every complaint is one line that names the sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastalter.data.batch import Batch
from fastalter.data.boxes import BOX_SIZE
from fastalter.data.prepare import usable_boxes
from fastalter.errors import DataError

if TYPE_CHECKING:
    from fastalter.models.config import BEVFusionConfig

MATRICES = ("lidar2image", "camera2lidar", "intrinsics", "image_aug", "lidar_aug")


def check_batch(batch: Batch, config: BEVFusionConfig) -> None:
    """Raise `DataError` unless the batch fits the model and holds at least one box of a known class in range.

    Labels of -1 and NaN velocities are legal: the loss leaves them out. A sample without boxes may stand
    beside one that has some.
    """
    _check_shapes(batch, config)
    for index in range(len(batch)):
        _check_sample(batch, index, config)
    bounds = config.lidar.point_cloud_range
    if not sum(usable_boxes(boxes, labels, bounds) for boxes, labels in zip(batch.boxes, batch.labels, strict=True)):
        names = ", ".join(_name(batch, index) for index in range(len(batch)))
        raise DataError(
            f"batch of {names}: no box of a known class within x, y of {_span(bounds)} m, so there is nothing to learn "
            "from; use frames with annotations in range"
        )


def _check_shapes(batch: Batch, config: BEVFusionConfig) -> None:
    height, width = config.camera.image_size
    if batch.images.ndim != 5 or batch.images.shape[2] != 3 or len(batch) == 0:
        raise DataError(f"images have shape {_shape(batch.images)}; the model takes [B, N, 3, H, W]")
    if batch.images.shape[3:] != (height, width):
        raise DataError(
            f"batch of {_name(batch, 0)}: images are {batch.images.shape[3]}x{batch.images.shape[4]}, the model takes "
            f"{height}x{width}; load the data with that image size or build the model with_image_size"
        )
    size, cameras = batch.images.shape[:2]
    for name in MATRICES:
        matrix = getattr(batch, name)
        expected = (size, 4, 4) if name == "lidar_aug" else (size, cameras, 4, 4)
        if tuple(matrix.shape) != expected:
            raise DataError(
                f"{name} has shape {_shape(matrix)}; {list(expected)} belongs to images {_shape(batch.images)}"
            )
        if not torch.isfinite(matrix).all():
            raise DataError(f"batch of {_name(batch, 0)}: {name} holds NaN or Inf; check the calibration")
    for name in ("points", "boxes", "labels", "tokens"):
        count = len(getattr(batch, name))
        if count != size and not (name == "tokens" and count == 0):
            raise DataError(f"batch of {_name(batch, 0)}: {count} {name} for {size} samples; give one per sample")


def _check_sample(batch: Batch, index: int, config: BEVFusionConfig) -> None:
    name = _name(batch, index)
    points, boxes, labels = batch.points[index], batch.boxes[index], batch.labels[index]
    columns, classes = config.lidar.in_channels, config.head.num_classes
    if points.ndim != 2 or points.shape[1] != columns:
        raise DataError(f"{name}: points have shape {_shape(points)}; the model takes [P, {columns}]")
    if len(points) == 0:
        raise DataError(
            f"{name}: no LiDAR point within {_span(config.lidar.point_cloud_range)} m; check the scan's units"
        )
    if boxes.ndim != 2 or boxes.shape[1] != BOX_SIZE or labels.shape != boxes.shape[:1]:
        raise DataError(f"{name}: boxes {_shape(boxes)} and labels {_shape(labels)}; expected [G, {BOX_SIZE}] and [G]")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(f"{name}: labels are {labels.dtype}; they must be integers, indices into CLASS_NAMES or -1")
    for what, values in (("images", batch.images[index]), ("points", points), ("boxes", boxes[:, :7])):
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            raise DataError(
                f"{name}: {bad} values of {what} are NaN or Inf (only velocities may be NaN); clean the data"
            )
    if torch.isinf(boxes[:, 7:]).any():
        raise DataError(f"{name}: a velocity is infinite; use NaN where it is unknown")
    if (boxes[:, 3:6] <= 0).any():
        row = int((boxes[:, 3:6] <= 0).any(-1).nonzero()[0])
        raise DataError(
            f"{name}: box {row} has size {[round(v, 3) for v in boxes[row, 3:6].tolist()]}; sizes must be positive"
        )
    wrong = labels[(labels < -1) | (labels >= classes)]
    if len(wrong):
        raise DataError(f"{name}: label {int(wrong[0])} is outside -1..{classes - 1} of a model with {classes} classes")


def _name(batch: Batch, index: int) -> str:
    return f"sample {batch.tokens[index]}" if index < len(batch.tokens) else f"sample {index}"


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _span(bounds: tuple[float, ...]) -> str:
    return f"[{bounds[0]:g}, {bounds[3]:g}] x [{bounds[1]:g}, {bounds[4]:g}]"
