"""Box conventions, and the only place that converts between them.

canonical   [x, y, z_centre, l, w, h, yaw, vx, vy]   yaw counter-clockwise from +x: what a `Batch` holds
mmdet3d     [x, y, z_bottom, l, w, h, yaw, vx, vy]   mmdetection3d 1.x
mit         [x, y, z_bottom, w, l, h, yaw_mit, vx, vy], yaw_mit = -yaw - pi/2   mit-han-lab/bevfusion

All in metres, radians and metres per second, in the LiDAR frame. Angles come back wrapped to [-pi, pi).
"""

import math
from typing import Literal

import torch
from torch import Tensor

BoxConvention = Literal["canonical", "mmdet3d", "mit"]
BOX_SIZE = 9


def wrap_angle(angle: Tensor) -> Tensor:
    """Wrap radians to [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def from_canonical(boxes: Tensor, convention: BoxConvention) -> Tensor:
    """Canonical boxes [G, 9] in another convention; a new tensor of the same dtype."""
    if convention == "canonical":
        return boxes.clone()
    x, y, z, length, width, height, yaw, vx, vy = boxes.unbind(-1)
    bottom = z - height / 2
    if convention == "mmdet3d":
        return torch.stack([x, y, bottom, length, width, height, wrap_angle(yaw), vx, vy], -1)
    return torch.stack([x, y, bottom, width, length, height, wrap_angle(-yaw - math.pi / 2), vx, vy], -1)


def to_canonical(boxes: Tensor, convention: BoxConvention) -> Tensor:
    """Boxes [G, 9] of a convention as canonical ones: the inverse of `from_canonical`, up to whole turns of yaw."""
    if convention == "canonical":
        return boxes.clone()
    x, y, bottom, a, b, height, yaw, vx, vy = boxes.unbind(-1)
    centre = bottom + height / 2
    if convention == "mmdet3d":
        return torch.stack([x, y, centre, a, b, height, wrap_angle(yaw), vx, vy], -1)
    return torch.stack([x, y, centre, b, a, height, wrap_angle(-yaw - math.pi / 2), vx, vy], -1)
