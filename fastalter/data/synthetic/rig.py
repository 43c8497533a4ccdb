"""Where the sensors sit and how they look: the calibration of a nuScenes car, rounded.

The ego frame is x forward, y left, z up, its origin on the ground under the rear axle. Times are seconds before the key
scan at which a camera exposes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastalter.data.sample import CAMERAS, Array
from fastalter.data.synthetic.settings import FULL_IMAGE

BEAMS = 32
BEAM_ELEVATION = (-30.67, 10.67)
"""Degrees of the lowest and the highest beam."""


@dataclass(frozen=True)
class Mount:
    """A camera: position (m), heading and pitch (degrees, counter-clockwise from ahead; up), focal length and principal
    point (pixels of a 900x1600 image), and how long before the key scan it exposes (s).
    """

    position: tuple[float, float, float]
    heading: float
    pitch: float
    focal: float
    centre: tuple[float, float]
    early: float

    def to_ego(self) -> Array:
        """[4, 4] float64, camera frame (x right, y down, z forward) -> ego frame."""
        heading, pitch = math.radians(self.heading), math.radians(self.pitch)
        forward = np.array([math.cos(pitch) * math.cos(heading), math.cos(pitch) * math.sin(heading), math.sin(pitch)])
        right = np.array([math.sin(heading), -math.cos(heading), 0.0])
        matrix = np.eye(4)
        matrix[:3, :3] = np.column_stack([right, np.cross(forward, right), forward])
        matrix[:3, 3] = self.position
        return matrix

    def intrinsics(self, image_size: tuple[int, int]) -> Array:
        """[3, 3] float64 pinhole matrix of an image of this (height, width)."""
        matrix = np.array([[self.focal, 0.0, self.centre[0]], [0.0, self.focal, self.centre[1]], [0.0, 0.0, 1.0]])
        matrix[0] *= image_size[1] / FULL_IMAGE[1]
        matrix[1] *= image_size[0] / FULL_IMAGE[0]
        return matrix


MOUNTS = {
    "CAM_FRONT": Mount((1.70, 0.02, 1.51), 0.3, -0.3, 1266.0, (816.0, 492.0), 0.035),
    "CAM_FRONT_RIGHT": Mount((1.55, -0.49, 1.50), -56.4, -0.7, 1261.0, (808.0, 495.0), 0.027),
    "CAM_FRONT_LEFT": Mount((1.52, 0.49, 1.51), 55.2, 0.2, 1273.0, (827.0, 480.0), 0.043),
    "CAM_BACK": Mount((0.03, 0.00, 1.58), 179.8, 0.9, 809.0, (829.0, 482.0), 0.010),
    "CAM_BACK_LEFT": Mount((1.04, 0.48, 1.59), 108.6, -0.9, 1257.0, (792.0, 493.0), 0.002),
    "CAM_BACK_RIGHT": Mount((1.01, -0.48, 1.56), -110.8, -0.9, 1260.0, (807.0, 501.0), 0.019),
}
assert tuple(MOUNTS) == CAMERAS


def lidar_to_ego() -> Array:
    """[4, 4] float64: on the roof, its x axis to the right of the car, tilted forward by 1.4 degrees."""
    tilt = math.radians(-1.4)
    turn = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    lean = np.array([[1.0, 0.0, 0.0], [0.0, math.cos(tilt), -math.sin(tilt)], [0.0, math.sin(tilt), math.cos(tilt)]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ lean
    matrix[:3, 3] = (0.94, 0.0, 1.84)
    return matrix


def beam_directions(azimuth_steps: int) -> Array:
    """[BEAMS, azimuth_steps, 3] float64 unit vectors in the LiDAR frame; column j points to 2 pi j / azimuth_steps."""
    elevation = np.radians(np.linspace(*BEAM_ELEVATION, BEAMS))[:, None]
    azimuth = np.arange(azimuth_steps) * (2 * math.pi / azimuth_steps)
    flat = np.cos(elevation)
    up = np.broadcast_to(np.sin(elevation), (BEAMS, azimuth_steps))
    return np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), up], -1)
