"""Random batches in the form of a nuScenes frame: for trying a run without data. Nothing in them is real."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fastalter.data.augment import ImageTransform
from fastalter.data.batch import CLASS_NAMES, Batch
from fastalter.data.prepare import collate, points_in_range
from fastalter.data.sample import Array

if TYPE_CHECKING:
    from fastalter.models.config import BEVFusionConfig

DESCRIPTION = "example: random images, points and boxes, no real data"
ORIGINAL_SIZE = (900, 1600)
FOCAL = 1266.0
HEADINGS = (90.0, 35.0, 145.0, -90.0, -160.0, -20.0)
"""Degrees from +x of the six cameras, in the order of `CAMERAS`; a nuScenes LiDAR looks along +y."""
GROUND = -1.84
"""Height of the ground in the LiDAR frame, metres."""
SIZES = {  # length, width, height, metres
    "car": (4.6, 1.9, 1.7),
    "truck": (6.9, 2.5, 2.8),
    "construction_vehicle": (6.4, 2.8, 3.2),
    "bus": (11.1, 2.9, 3.5),
    "trailer": (12.3, 2.9, 3.9),
    "barrier": (0.5, 2.5, 1.0),
    "motorcycle": (2.1, 0.8, 1.5),
    "bicycle": (1.7, 0.6, 1.3),
    "pedestrian": (0.7, 0.7, 1.8),
    "traffic_cone": (0.4, 0.4, 1.1),
}


def example_batch(config: BEVFusionConfig, batch_size: int = 2, seed: int = 0, index: int = 0) -> Batch:
    """A random `Batch`, a function of (seed, index): smooth random images, rings of points on flat ground, boxes of the
    model's classes in its range with points on their surfaces, six cameras around, no augmentation.
    """
    return collate(
        [
            _sample(config, np.random.default_rng((seed, index, k)), f"random-{seed}-{index}-{k}")
            for k in range(batch_size)
        ]
    )


def _sample(config: BEVFusionConfig, rng: np.random.Generator, token: str) -> Batch:
    bounds, size = config.lidar.point_cloud_range, config.camera.image_size
    boxes, labels = _boxes(rng, bounds, config.head.num_classes)
    points = torch.from_numpy(np.concatenate([_ground(rng, bounds), *(_surface(rng, box) for box in boxes)])).float()
    intrinsics = np.diag([FOCAL, FOCAL, 1.0, 1.0])
    intrinsics[:2, 2] = ORIGINAL_SIZE[1] / 2, ORIGINAL_SIZE[0] / 2
    camera2lidar = np.stack([_camera(math.radians(heading)) for heading in HEADINGS])
    count = len(HEADINGS)
    return Batch(
        images=_images(rng, count, size)[None],
        points=[points[points_in_range(points, bounds)]],
        lidar2image=torch.from_numpy(intrinsics @ np.linalg.inv(camera2lidar))[None].float(),
        camera2lidar=torch.from_numpy(camera2lidar)[None].float(),
        intrinsics=torch.from_numpy(intrinsics).float().expand(1, count, 4, 4).clone(),
        image_aug=ImageTransform().matrix(ORIGINAL_SIZE, size).float().expand(1, count, 4, 4).clone(),
        lidar_aug=torch.eye(4)[None],
        boxes=[torch.from_numpy(boxes).float()],
        labels=[torch.from_numpy(labels)],
        tokens=[token],
    )


def _boxes(rng: np.random.Generator, bounds: tuple[float, ...], classes: int) -> tuple[Array, Array]:
    """Two boxes of every class, standing on the ground: [G, 9] canonical and [G] labels."""
    labels = np.repeat(np.arange(classes), 2)
    size = np.array([SIZES[CLASS_NAMES[label % len(CLASS_NAMES)]] for label in labels]) * rng.uniform(
        0.9, 1.1, (len(labels), 1)
    )
    reach = 0.9 * min(-bounds[0], -bounds[1], bounds[3], bounds[4])
    distance, direction = rng.uniform(0.15, 1.0, len(labels)) * reach, rng.uniform(-np.pi, np.pi, len(labels))
    yaw, speed = rng.uniform(-np.pi, np.pi, len(labels)), rng.uniform(0.0, 8.0, len(labels))
    speed[np.isin(labels % len(CLASS_NAMES), [CLASS_NAMES.index("barrier"), CLASS_NAMES.index("traffic_cone")])] = 0.0
    columns = [distance * np.cos(direction), distance * np.sin(direction), GROUND + size[:, 2] / 2]
    return np.column_stack([*columns, size, yaw, speed * np.cos(yaw), speed * np.sin(yaw)]), labels


def _ground(rng: np.random.Generator, bounds: tuple[float, ...]) -> Array:
    """[P, 5] points of 32 rings."""
    rings = np.geomspace(2.5, 1.4 * bounds[3], 32)
    radius, angle = np.repeat(rings, 256), np.tile(np.linspace(-np.pi, np.pi, 256, endpoint=False), 32)
    height = GROUND + rng.normal(0.0, 0.03, radius.shape)
    intensity = rng.uniform(0.0, 60.0, radius.shape)
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle), height, intensity, np.zeros_like(radius)])


def _surface(rng: np.random.Generator, box: Array) -> Array:
    """[P, 5] points on a box's sides and top."""
    x, y, z, length, width, height, yaw = box[:7]
    unit = rng.uniform(-0.5, 0.5, (64, 3))
    side = rng.integers(0, 3, 64)
    unit[np.arange(64), side] = np.where(side == 2, 0.5, np.sign(unit[np.arange(64), side]) * 0.5)
    along, across, up = (unit * (length, width, height)).T
    across_x, across_y = -math.sin(yaw) * across, math.cos(yaw) * across
    place = [x + math.cos(yaw) * along + across_x, y + math.sin(yaw) * along + across_y, z + up]
    return np.column_stack([*place, rng.uniform(0.0, 255.0, 64), np.zeros(64)])


def _camera(heading: float) -> Array:
    """[4, 4] float64, camera (x right, y down, z forward) -> LiDAR frame, of a level camera looking along a heading."""
    matrix = np.eye(4)
    cos, sin = math.cos(heading), math.sin(heading)
    matrix[:3, :3] = np.column_stack([(sin, -cos, 0.0), (0.0, 0.0, -1.0), (cos, sin, 0.0)])
    matrix[:3, 3] = (0.5 * cos, 0.5 * sin, -0.3)
    return matrix


def _images(rng: np.random.Generator, count: int, size: tuple[int, int]) -> Tensor:
    """[N, 3, H, W] blotches of about 16 pixels with fine noise, at the spread of normalised photographs."""
    coarse = torch.from_numpy(rng.standard_normal((count, 3, max(2, size[0] // 16), max(2, size[1] // 16)))).float()
    fine = torch.from_numpy(rng.standard_normal((count, 3, *size))).float()
    return interpolate(coarse, size, mode="bilinear", align_corners=False) + 0.2 * fine
