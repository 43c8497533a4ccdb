"""Augmentations as data: what was drawn, the matrix it means, and its effect on images, points and boxes.

Ranges are those the published models were trained with (mit-han-lab/bevfusion, Swin-T camera+LiDAR).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

RESIZE_MARGIN = 12 / 11
"""Width of the resized image over that of the crop: 0.48 * 1600 / 704 in the published evaluation setting."""
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageTransform:
    """Resize, crop keeping the lower part, flip, rotate; the default is the published evaluation setting.

    zoom       resize factor relative to evaluation's
    crop_x     where the crop starts in the spare width: 0 left, 1 right
    flip       mirror left and right
    rotation   degrees, counter-clockwise as displayed, about the crop's centre
    """

    zoom: float = 1.0
    crop_x: float = 0.5
    flip: bool = False
    rotation: float = 0.0

    def resized(self, original: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) before the crop, of an original image for a crop of `size`, both (height, width)."""
        (height, width), (crop_height, crop_width) = original, size
        factor = self.zoom * max(RESIZE_MARGIN * crop_width / width, crop_height / height)
        return round(height * factor), round(width * factor)

    def corner(self, resized: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """(left, top) of the crop in the resized image; where the crop reaches past an edge, black fills it."""
        return int(self.crop_x * max(0, resized[1] - size[1])), resized[0] - size[0]

    def apply(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """The crop of `size` (height, width) from an image."""
        resized = self.resized((image.height, image.width), size)
        left, top = self.corner(resized, size)
        image = image.resize((resized[1], resized[0]), Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + size[1], top + size[0]))
        if self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.rotation:
            image = image.rotate(self.rotation, Image.Resampling.BILINEAR)
        return image

    def matrix(self, original: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """[4, 4] float64, original pixels -> pixels of `apply`'s result: `Batch.image_aug`."""
        resized = self.resized(original, size)
        left, top = self.corner(resized, size)
        scale = torch.diag(
            torch.tensor([resized[1] / original[1], resized[0] / original[0], 1, 1], dtype=torch.float64)
        )
        crop = _translation(-left, -top)
        mirror = torch.eye(4, dtype=torch.float64)
        if self.flip:
            mirror[0, 0], mirror[0, 3] = -1, size[1]
        turn = _rotation(-math.radians(self.rotation))  # y points down, so counter-clockwise as displayed is negative
        to_centre, back = _translation(-size[1] / 2, -size[0] / 2), _translation(size[1] / 2, size[0] / 2)
        return back @ turn @ to_centre @ mirror @ crop @ scale


@dataclass(frozen=True)
class BevTransform:
    """Rotate, mirror, scale, then shift a scene in the LiDAR frame.

    rotation          radians, counter-clockwise from +x
    scale             factor on positions, sizes and velocities
    translation       metres
    flip_x, flip_y    x -> -x, y -> -y
    """

    rotation: float = 0.0
    scale: float = 1.0
    translation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    flip_x: bool = False
    flip_y: bool = False

    def matrix(self) -> Tensor:
        """[4, 4] float64: `Batch.lidar_aug`."""
        signs = torch.tensor([-1.0 if self.flip_x else 1.0, -1.0 if self.flip_y else 1.0, 1.0], dtype=torch.float64)
        matrix = _rotation(self.rotation)
        matrix[:3, :3] = self.scale * signs[:, None] * matrix[:3, :3]
        matrix[:3, 3] = torch.tensor(self.translation, dtype=torch.float64)
        return matrix


def draw_image_transform(rng: np.random.Generator) -> ImageTransform:
    """A training augmentation of one camera's image: resize factor 0.38 to 0.55 against evaluation's 0.48."""
    return ImageTransform(
        zoom=rng.uniform(0.38, 0.55) / 0.48,
        crop_x=rng.uniform(0.0, 1.0),
        flip=bool(rng.random() < 0.5),
        rotation=rng.uniform(-5.4, 5.4),
    )


def draw_bev_transform(rng: np.random.Generator) -> BevTransform:
    """A training augmentation of the scene."""
    x, y, z = rng.normal(0.0, 0.5, size=3)
    return BevTransform(
        rotation=rng.uniform(-math.pi / 4, math.pi / 4),
        scale=rng.uniform(0.9, 1.1),
        translation=(x, y, z),
        flip_x=bool(rng.random() < 0.5),
        flip_y=bool(rng.random() < 0.5),
    )


def transform_points(points: Tensor, matrix: Tensor) -> Tensor:
    """Points [P, >=3] moved by a [4, 4] matrix; further columns are kept. A new tensor, computed in float64."""
    moved = points.clone()
    moved[:, :3] = (points[:, :3].double() @ matrix[:3, :3].T.double() + matrix[:3, 3].double()).to(points.dtype)
    return moved


def transform_boxes(boxes: Tensor, matrix: Tensor) -> Tensor:
    """Canonical boxes [G, 9] moved by a matrix of `BevTransform`: centres, sizes, yaw and velocities. A new tensor."""
    matrix = matrix.to(boxes.dtype)
    linear, plane = matrix[:3, :3], matrix[:2, :2]
    moved = boxes.clone()
    moved[:, :3] = boxes[:, :3] @ linear.T + matrix[:3, 3]
    moved[:, 3:6] = boxes[:, 3:6] * torch.linalg.det(linear).abs() ** (1 / 3)
    heading = torch.stack([boxes[:, 6].cos(), boxes[:, 6].sin()], -1) @ plane.T
    moved[:, 6] = torch.atan2(heading[:, 1], heading[:, 0])
    moved[:, 7:9] = boxes[:, 7:9] @ plane.T
    return moved


def normalise(image: Image.Image) -> Tensor:
    """[3, H, W] float32, ImageNet-normalised RGB."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(IMAGE_MEAN)[:, None, None]) / torch.tensor(IMAGE_STD)[:, None, None]


def _rotation(angle: float) -> Tensor:
    """[4, 4] float64 turn of the first two axes, from the first towards the second."""
    matrix = torch.eye(4, dtype=torch.float64)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix[:2, :2] = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    return matrix


def _translation(x: float, y: float) -> Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[0, 3], matrix[1, 3] = x, y
    return matrix
