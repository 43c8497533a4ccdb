"""The sparse depth map: what a pinhole sees, the nearest of several points, nothing from behind, no input changed."""

from __future__ import annotations

import torch
from torch import Tensor

from fastalter.models.view_transform import depth_image

SIZE = (6, 8)
FOCAL = 4.0


def pinhole() -> Tensor:
    """LiDAR frame = camera frame; the axis meets pixel (x, y) = (4, 3)."""
    matrix = torch.eye(4)
    matrix[0, 0] = matrix[1, 1] = FOCAL
    matrix[0, 2], matrix[1, 2] = 4.0, 3.0
    return matrix


def image_of(points: Tensor, image_aug: Tensor | None = None, lidar_aug: Tensor | None = None) -> Tensor:
    augs = [torch.eye(4) if aug is None else aug for aug in (image_aug, lidar_aug)]
    return depth_image(points, pinhole()[None], augs[0][None], augs[1], SIZE)[0, 0]


def test_a_point_marks_the_pixel_it_projects_to_with_its_depth() -> None:
    image = image_of(torch.tensor([[1.3, -0.8, 2.0]]))  # x = 4 * 1.3 / 2 + 4 = 6.6, y = 4 * -0.8 / 2 + 3 = 1.4
    assert image.nonzero().tolist() == [[1, 6]]
    assert image[1, 6] == 2.0


def test_the_nearest_point_of_a_pixel_is_kept_whatever_the_order() -> None:
    points = torch.tensor([[0.01, 0.01, 9.0], [0.01, 0.01, 3.0], [0.02, 0.01, 5.0]])
    for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        assert image_of(points[order])[3, 4] == 3.0


def test_points_outside_the_image_and_behind_the_camera_leave_no_trace() -> None:
    # Homogeneous x and y of the last are 0: pixel (0, 0), were its depth only clamped.
    points = torch.tensor([[9.0, 0.0, 2.0], [0.0, -9.0, 2.0], [0.1, 0.1, -2.0], [5.0, 3.75, -5.0]])
    assert not image_of(points).any()


def test_both_augmentations_are_accounted_for() -> None:
    points = torch.tensor([[1.3, -0.8, 2.0]])
    lidar_aug = torch.tensor([[0.0, -2.0, 0.0, 5.0], [2.0, 0.0, 0.0, -1.0], [0.0, 0.0, 2.0, 3.0], [0, 0, 0, 1.0]])
    moved = points @ lidar_aug[:3, :3].T + lidar_aug[:3, 3]
    flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
    flip[0, 3] = 8.0
    before = moved.clone()
    image = image_of(moved, flip, lidar_aug)  # x = 8 - 6.6 = 1.4
    assert image.nonzero().tolist() == [[1, 1]]
    torch.testing.assert_close(image[1, 1], torch.tensor(2.0))
    assert torch.equal(moved, before)
