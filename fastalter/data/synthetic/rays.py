"""Where rays meet boxes that stand upright on the ground."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastalter.data.sample import Array


@dataclass(frozen=True)
class Hits:
    """Rays on one box. distance [...]: along the ray, inf where it misses; point [..., 3]: where, in the frame of the
    box (its centre the origin, x along its length); axis [...]: the axis that the face it hits is normal to.
    """

    distance: Array
    point: Array
    axis: Array


def to_frame(boxes: Array, pose: Array) -> Array:
    """[G, 7] global boxes in the frame of an upright vehicle whose pose (frame -> global) is given."""
    heading = math.atan2(pose[1, 0], pose[0, 0])
    moved = boxes.copy()
    moved[:, :2] = (boxes[:, :2] - pose[:2, 3]) @ pose[:2, :2]
    moved[:, 6] = boxes[:, 6] - heading
    return moved


def cast(origin: Array, directions: Array, box: Array) -> Hits:
    """Rays from `origin` [3] along `directions` [..., 3] float32 against a box [7] in the same frame."""
    cos, sin = math.cos(box[6]), math.sin(box[6])
    turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    start = ((origin - box[:3]) @ turn).astype(np.float32)
    along = directions @ turn.astype(np.float32)
    half = (box[3:6] / 2).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / along
        first, second = (-half - start) * inverse, (half - start) * inverse
    # Axis by axis: reducing over a last axis of three is slow.
    nearer, farther = np.minimum(first, second), np.maximum(first, second)
    enter = np.maximum(np.maximum(nearer[..., 0], nearer[..., 1]), nearer[..., 2])
    leave = np.minimum(np.minimum(farther[..., 0], farther[..., 1]), farther[..., 2])
    axis = np.where(enter == nearer[..., 0], 0, np.where(enter == nearer[..., 1], 1, 2))
    distance = np.where((enter < leave) & (enter > 0), enter, np.float32(np.inf))
    with np.errstate(invalid="ignore"):
        point = start + along * distance[..., None]
    return Hits(distance, point, axis)


def inverse_pose(pose: Array) -> Array:
    """The inverse of a [4, 4] rigid motion, or of a stack of them."""
    inverse = np.zeros_like(pose)
    inverse[..., :3, :3] = np.swapaxes(pose[..., :3, :3], -1, -2)
    inverse[..., :3, 3] = -(inverse[..., :3, :3] @ pose[..., :3, 3:])[..., 0]
    inverse[..., 3, 3] = 1
    return inverse


def corners(box: Array) -> Array:
    """[8, 3] corners of a box [7]."""
    signs = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    local = signs * box[3:6]
    cos, sin = math.cos(box[6]), math.sin(box[6])
    x, y = cos * local[:, 0] - sin * local[:, 1], sin * local[:, 0] + cos * local[:, 1]
    return np.column_stack([box[0] + x, box[1] + y, box[2] + local[:, 2]])
