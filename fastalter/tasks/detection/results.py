"""Detections as the document that nuScenes' evaluation server and devkit read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastalter.data.batch import CLASS_NAMES
from fastalter.data.boxes import BOX_SIZE
from fastalter.data.sample import Array
from fastalter.errors import DataError

if TYPE_CHECKING:
    from fastalter.data.nuscenes import NuScenesFrames

Detections = dict[str, Tensor]
"""One sample: boxes canonical [K, 9] in the LiDAR frame of its key scan, scores [K], labels [K] int64."""

MAX_BOXES = 500
"""The devkit refuses samples with more."""
MOVING_SPEED = 0.2
"""m/s, as in mmdetection3d and MIT's BEVFusion."""
_VEHICLES = ("car", "truck", "construction_vehicle", "bus", "trailer")
_CYCLES = ("motorcycle", "bicycle")
_MOVING = {
    **dict.fromkeys(_VEHICLES, "vehicle.moving"),
    **dict.fromkeys(_CYCLES, "cycle.with_rider"),
    "pedestrian": "pedestrian.moving",
}
_STILL = {
    **dict.fromkeys(_VEHICLES, "vehicle.parked"),
    **dict.fromkeys(_CYCLES, "cycle.without_rider"),
    "bus": "vehicle.stopped",
    "pedestrian": "pedestrian.standing",
}


def attribute_of(name: str, speed: float) -> str:
    """The likeliest attribute of a class at a speed (m/s); "" for barriers and cones, which have none."""
    return (_MOVING if speed > MOVING_SPEED else _STILL).get(name, "")


def to_results(
    detections: Mapping[str, Detections], frames: NuScenesFrames, sensors: Sequence[str] = ("camera", "lidar")
) -> dict[str, Any]:
    """The results document of detections by sample token: {"meta": ..., "results": {token: [box, ...]}}.

    Boxes are written in the global frame, best score first, at most `MAX_BOXES` a sample; unknown (NaN) velocities as
    0. `sensors` are those the model saw. Raises DataError for boxes that cannot be written and tokens not in `frames`.
    """
    meta = {
        "use_camera": "camera" in sensors,
        "use_lidar": "lidar" in sensors,
        "use_radar": False,
        "use_map": False,
        "use_external": False,
    }
    results = {
        token: _sample_results(token, detected, frames.lidar_to_global(token)) for token, detected in detections.items()
    }
    return {"meta": meta, "results": results}


def _sample_results(token: str, detections: Detections, to_global: Array) -> list[dict[str, Any]]:
    boxes, scores, labels = _checked(token, detections)
    best = scores.argsort(descending=True, stable=True)[:MAX_BOXES]
    rows = boxes[best].numpy()
    turn = to_global[:3, :3]
    centres = rows[:, :3] @ turn.T + to_global[:3, 3]
    velocities = np.where(np.isnan(rows[:, 7:9]).any(1, keepdims=True), 0.0, rows[:, 7:9]) @ turn[:2, :2].T
    speeds = np.hypot(*velocities.T)
    names = [CLASS_NAMES[label] for label in labels[best].tolist()]
    columns = (centres, rows[:, [4, 3, 5]], _rotations(rows[:, 6], turn), velocities)
    return [
        {
            "sample_token": token,
            "translation": centre,
            "size": size,
            "rotation": rotation,
            "velocity": velocity,
            "detection_name": name,
            "detection_score": score,
            "attribute_name": attribute_of(name, speed),
        }
        for centre, size, rotation, velocity, name, score, speed in zip(
            *(column.tolist() for column in columns), names, scores[best].tolist(), speeds.tolist(), strict=True
        )
    ]


def _rotations(yaw: Array, turn: Array) -> Array:
    """[K, 4] quaternions (w, x, y, z) of a yaw [K] about the LiDAR's z axis, then `turn` [3, 3] into the global frame.

    The product of two quaternions, written out for all boxes at once: a full validation set has a million.
    """
    from pyquaternion import Quaternion

    w, x, y, z = Quaternion(matrix=turn).elements
    cos, sin = np.cos(yaw / 2), np.sin(yaw / 2)
    return np.stack([w * cos - z * sin, x * cos + y * sin, y * cos - x * sin, z * cos + w * sin], -1)


def _checked(token: str, detections: Detections) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes and scores in float64 and labels on the CPU; DataError for what is no box of a class."""
    boxes, scores, labels = (detections[name].detach().cpu() for name in ("boxes", "scores", "labels"))
    if boxes.shape != (len(labels), BOX_SIZE) or scores.shape != labels.shape or labels.ndim != 1:
        raise DataError(
            f"sample {token}: boxes {list(boxes.shape)}, scores {list(scores.shape)}, labels {list(labels.shape)}; "
            f"expected [K, {BOX_SIZE}], [K] and [K]"
        )
    unusable = ~torch.isfinite(boxes[:, :7]).all(1) | (boxes[:, 3:6] <= 0).any(1) | boxes[:, 7:].isinf().any(1)
    unusable |= ~torch.isfinite(scores) | (labels < 0) | (labels >= len(CLASS_NAMES))
    if unusable.any():
        row = int(unusable.nonzero()[0])
        values = [round(value, 3) for value in boxes[row].tolist()]
        raise DataError(
            f"sample {token}: detection {row}, box {values} with score {float(scores[row]):g} and label "
            f"{int(labels[row])}, has no usable place, size, score or class; check the model's weights"
        )
    return boxes.double(), scores.double(), labels
