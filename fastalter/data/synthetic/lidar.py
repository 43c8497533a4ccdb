"""The LiDAR: 32 beams around, the nearest of ground and boxes, with range noise and lost returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fastalter.data.sample import Array
from fastalter.data.synthetic import rays
from fastalter.data.synthetic.rig import beam_directions, lidar_to_ego
from fastalter.data.synthetic.world import Scene

MAX_RANGE = 70.0
RANGE_NOISE = 0.02
"""Standard deviation of a range, metres."""
LOST = 0.15
"""Share of returns that never come back."""


@dataclass(frozen=True)
class Scan:
    """points [P, 5] float32: x, y, z (m, LiDAR frame), intensity (0 to 255), ring; owner [P]: its thing, or -1."""

    points: Array
    owner: Array


@lru_cache(maxsize=4)
def _beams(azimuth_steps: int) -> tuple[Array, Array, Array, Array]:
    """Directions in the LiDAR frame and in the ego frame [BEAMS, A, 3] float32, the origin in the ego frame [3], and
    the range of the ground [BEAMS, A], inf above the horizon.
    """
    mount = lidar_to_ego()
    own = beam_directions(azimuth_steps)
    ego = own @ mount[:3, :3].T
    with np.errstate(divide="ignore"):
        ground = np.where(ego[..., 2] < 0, -mount[2, 3] / ego[..., 2], np.inf)
    return own.astype(np.float32), ego.astype(np.float32), mount[:3, 3], ground.astype(np.float32)


def scan(scene: Scene, t: float, number: int) -> Scan:
    """A scan at time t, taken in an instant; `number` of the scan in its scene only seeds its noise."""
    own, directions, origin, ground = _beams(scene.settings.azimuth_steps)
    rng = scene.rng(100, number)
    distance, owner = ground.copy(), np.full(ground.shape, -1, dtype=np.int32)
    boxes = rays.to_frame(scene.boxes(t), scene.drive.pose(t))
    for index, box in enumerate(boxes):
        columns = _columns(box, origin, scene.settings.azimuth_steps)
        hits = rays.cast(origin, directions[:, columns], box)
        front = hits.distance < distance[:, columns]
        distance[:, columns] = np.where(front, hits.distance, distance[:, columns])
        owner[:, columns] = np.where(front, index, owner[:, columns])
    back = (distance < MAX_RANGE) & (rng.random(distance.shape, dtype=np.float32) >= LOST)
    noise = rng.standard_normal(distance.shape, dtype=np.float32) * np.float32(RANGE_NOISE)
    flicker = rng.uniform(0.7, 1.3, distance.shape).astype(np.float32)
    brightness = np.append(scene.rng(101).uniform(20, 90, len(boxes)), 12.0).astype(np.float32)
    points = np.empty((int(back.sum()), 5), dtype=np.float32)
    points[:, :3] = own[back] * (distance + noise)[back][:, None]
    points[:, 3] = brightness[owner[back]] * flicker[back]
    points[:, 4] = np.nonzero(back)[0]
    return Scan(points, owner[back])


def _columns(box: Array, origin: Array, steps: int) -> Array:
    """Columns that a box can cover; a few more, as the sensor is tilted."""
    around = rays.corners(box)[:, :2] - origin[:2]
    middle = math.atan2(box[1] - origin[1], box[0] - origin[0])
    spread = np.angle(np.exp(1j * (np.arctan2(around[:, 1], around[:, 0]) - middle)))
    if spread.max() - spread.min() > math.pi * 0.9:
        return np.arange(steps)
    to_column = steps / (2 * math.pi)
    start = middle + math.pi / 2  # the LiDAR's x axis points to the car's right
    margin = 2 + math.ceil(steps / 100)
    first = math.floor((start + spread.min()) * to_column) - margin
    last = math.ceil((start + spread.max()) * to_column) + margin
    return np.arange(first, min(last, first + steps - 1) + 1) % steps
