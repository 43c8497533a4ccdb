"""Exact overlap of rotated boxes on any device, vectorised over pairs.

Boxes are canonical: [x, y, z_centre, l, w, h, yaw, ...], yaw counter-clockwise from +x. All is computed in float64 and
without gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def bev_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Area (m²) shared by the footprints of canonical boxes a [N, >=7] and b [M, >=7]: float64 [N, M]."""
    a, b = a.double(), b.double()
    radius_a, radius_b = torch.hypot(a[:, 3], a[:, 4]) / 2, torch.hypot(b[:, 3], b[:, 4]) / 2
    offset = a[:, None, :2] - b[None, :, :2]
    near = offset.square().sum(-1) <= (radius_a[:, None] + radius_b).square()
    i, j = near.nonzero(as_tuple=True)
    area = a.new_zeros(len(a), len(b))
    area[i, j] = _pair_overlap(a[i], b[j])
    return area


@torch.no_grad()
def iou_3d(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of the volumes of canonical boxes a [N, >=7] and b [M, >=7]: float64 [N, M].

    A pair with a size that is not finite has IoU 0.
    """
    a, b = a.double(), b.double()
    top = torch.minimum((a[:, 2] + a[:, 5] / 2)[:, None], b[:, 2] + b[:, 5] / 2)
    bottom = torch.maximum((a[:, 2] - a[:, 5] / 2)[:, None], b[:, 2] - b[:, 5] / 2)
    shared = bev_overlap(a, b) * (top - bottom).clamp(min=0)
    union = a[:, 3:6].prod(1)[:, None] + b[:, 3:6].prod(1) - shared
    return (shared / union.clamp(min=1e-8)).nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)


def _pair_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Shared area [P] of footprints a [P, >=7] and b [P, >=7], pair by pair.

    In the frame of b the area is the integral over x of the height of a, with x and y clamped to the rectangle b.
    Walking a's border counter-clockwise, the upper edges add and the lower ones subtract. On one edge the clamped
    height is piecewise linear, so the trapezium rule between its kinks is exact. There are no vertex lists to sort:
    touching and coincident edges need no special case, and a small shift changes the area by a small amount.
    """
    start = _corners_in_frame(a, b)
    end = start.roll(-1, 1)
    half_length, half_width = b[:, 3:4] / 2, b[:, 4:5] / 2

    x0, y0 = _cut_at_x(start, end, start[..., 0], half_length)
    x1, y1 = _cut_at_x(start, end, end[..., 0], half_length)
    rise = y1 - y0
    slope = torch.where(rise == 0, 1.0, rise)
    kinks = torch.stack([(-half_width - y0) / slope, (half_width - y0) / slope], -1).clamp(0, 1).sort(-1).values
    t = torch.nn.functional.pad(kinks, (1, 1))
    t[..., -1] = 1
    height = (y0[..., None] + t * rise[..., None]).clamp(-half_width[..., None], half_width[..., None])
    mean_height = ((height[..., 1:] + height[..., :-1]) / 2 * t.diff(dim=-1)).sum(-1)
    return ((x0 - x1) * (mean_height + half_width)).sum(1).clamp(min=0)


def _corners_in_frame(a: Tensor, b: Tensor) -> Tensor:
    """Corners of a [P, 4, 2], counter-clockwise, in the frame whose origin and x axis are those of b."""
    angle = a[:, 6] - b[:, 6]
    along = torch.stack([angle.cos(), angle.sin()], -1)[:, None] * (a[:, 3] / 2)[:, None, None]
    across = torch.stack([-angle.sin(), angle.cos()], -1)[:, None] * (a[:, 4] / 2)[:, None, None]
    dx, dy = (a[:, :2] - b[:, :2]).unbind(1)
    cos, sin = b[:, 6].cos(), b[:, 6].sin()
    centre = torch.stack([cos * dx + sin * dy, cos * dy - sin * dx], -1)[:, None]
    return centre + torch.cat([along + across, across - along, -along - across, along - across], 1)


def _cut_at_x(start: Tensor, end: Tensor, x: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """The point of each edge [P, 4, 2] at abscissa x, x clamped to [-limit, limit]."""
    x = torch.minimum(torch.maximum(x, -limit), limit)
    run = end[..., 0] - start[..., 0]
    t = ((x - start[..., 0]) / torch.where(run == 0, 1.0, run)).clamp(0, 1)
    return x, start[..., 1] + t * (end[..., 1] - start[..., 1])
