"""Augmentations: the matrices say what happens to pixels, points and boxes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from fastalter.data.augment import (
    IMAGE_MEAN,
    IMAGE_STD,
    BevTransform,
    ImageTransform,
    draw_bev_transform,
    draw_image_transform,
    normalise,
    transform_boxes,
    transform_points,
)
from fastalter.data.draw import box_corners

SCENES = [
    BevTransform(),
    BevTransform(rotation=0.5),
    BevTransform(flip_x=True, rotation=-0.2),
    BevTransform(flip_y=True, scale=1.07, translation=(1.0, -2.0, 0.3)),
    BevTransform(rotation=2.0, scale=0.9, translation=(-0.4, 0.1, -0.6), flip_x=True, flip_y=True),
]


def random_boxes(count: int = 20) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    boxes = 10 * torch.randn(count, 9, dtype=torch.float64, generator=rng)
    boxes[:, 3:6] = boxes[:, 3:6].abs() + 0.5
    return boxes


def test_evaluation_setting_is_the_published_one() -> None:
    transform, size = ImageTransform(), (256, 704)
    assert transform.resized((900, 1600), size) == (432, 768)
    assert transform.corner((432, 768), size) == (32, 176)
    expected = torch.eye(4, dtype=torch.float64)
    expected[0, 0] = expected[1, 1] = 0.48
    expected[0, 3], expected[1, 3] = -32, -176
    torch.testing.assert_close(transform.matrix((900, 1600), size), expected)


@pytest.mark.parametrize("original", [(900, 1600), (375, 1242), (600, 600), (1200, 900)])
@pytest.mark.parametrize("size", [(256, 704), (64, 176), (128, 352), (448, 800)])
def test_evaluation_crop_lies_inside_the_image_and_ends_at_its_bottom(
    original: tuple[int, int], size: tuple[int, int]
) -> None:
    transform = ImageTransform()
    resized = transform.resized(original, size)
    left, top = transform.corner(resized, size)
    assert left >= 0
    assert top >= 0
    assert left + size[1] <= resized[1]
    assert top + size[0] == resized[0]


@pytest.mark.parametrize(
    "transform",
    [
        ImageTransform(),
        ImageTransform(zoom=1.14, crop_x=0.9),
        ImageTransform(flip=True),
        ImageTransform(rotation=5.0),
        ImageTransform(rotation=-30.0, flip=True, zoom=1.1, crop_x=0.2),
        ImageTransform(zoom=0.8, rotation=3.0),
    ],
)
def test_pixels_go_where_the_matrix_says(transform: ImageTransform) -> None:
    size, original = (128, 352), (450, 800)
    matrix = transform.matrix(original, size)
    rows, columns = np.mgrid[: original[0], : original[1]] + 0.5
    seen = 0
    for u, v in [(400.0, 300.0), (300.5, 350.0), (520.0, 280.25), (440.0, 390.0)]:
        blob = 255 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / (2 * 4.0**2))
        image = Image.fromarray(np.repeat(blob[:, :, None], 3, 2).astype(np.uint8))
        crop = np.asarray(transform.apply(image, size), dtype=np.float64)[:, :, 0]
        assert crop.shape == size
        crop_rows, crop_columns = np.mgrid[: size[0], : size[1]] + 0.5
        expected = (matrix @ torch.tensor([u, v, 7.0, 1.0], dtype=torch.float64)).numpy()
        assert expected[2:] == pytest.approx([7.0, 1.0])  # depth is left alone
        if not (10 < expected[0] < size[1] - 10 and 10 < expected[1] < size[0] - 10):
            continue
        centre = (crop * crop_columns).sum() / crop.sum(), (crop * crop_rows).sum() / crop.sum()
        assert centre == pytest.approx(expected[:2], abs=0.15)
        seen += 1
    assert seen >= 2


def test_normalised_with_the_imagenet_statistics() -> None:
    tensor = normalise(Image.new("RGB", (3, 2), (255, 0, 51)))
    assert tensor.shape == (3, 2, 3)
    expected = [(value - mean) / std for value, mean, std in zip((1.0, 0.0, 0.2), IMAGE_MEAN, IMAGE_STD, strict=True)]
    torch.testing.assert_close(tensor[:, 0, 0], torch.tensor(expected))


@pytest.mark.parametrize("scene", SCENES)
def test_boxes_move_as_their_corners_do(scene: BevTransform) -> None:
    boxes, matrix = random_boxes(), scene.matrix()
    moved = box_corners(transform_boxes(boxes, matrix))
    expected = torch.stack([transform_points(corners, matrix) for corners in box_corners(boxes)])
    distance = torch.cdist(moved, expected)  # a mirrored box numbers its corners the other way round
    assert float(distance.amin(1).max()) < 1e-9
    assert float(distance.amin(2).max()) < 1e-9


@pytest.mark.parametrize("scene", SCENES)
def test_front_and_velocity_move_with_the_box(scene: BevTransform) -> None:
    boxes, matrix = random_boxes(), scene.matrix()
    moved = transform_boxes(boxes, matrix)
    ahead = boxes[:, :3].clone()
    ahead[:, :2] += torch.stack([boxes[:, 6].cos(), boxes[:, 6].sin()], -1)
    direction = transform_points(ahead, matrix)[:, :2] - moved[:, :2]
    torch.testing.assert_close(torch.atan2(direction[:, 1], direction[:, 0]), moved[:, 6])
    later = boxes[:, :3].clone()
    later[:, :2] += boxes[:, 7:]
    torch.testing.assert_close(transform_points(later, matrix)[:, :2] - moved[:, :2], moved[:, 7:])


def test_unknown_velocities_stay_unknown() -> None:
    boxes = random_boxes(2)
    boxes[0, 7:] = math.nan
    moved = transform_boxes(boxes, SCENES[-1].matrix())
    assert bool(moved[0, 7:].isnan().all())
    assert bool(moved[0, :7].isfinite().all())
    assert bool(moved[1].isfinite().all())


@pytest.mark.parametrize("scene", SCENES)
def test_undoing_the_matrix_gives_the_points_back(scene: BevTransform) -> None:
    points = torch.randn(100, 5, generator=torch.Generator().manual_seed(0)) * 30
    kept = points.clone()
    moved = transform_points(points, scene.matrix())
    assert torch.equal(points, kept)
    assert torch.equal(moved[:, 3:], points[:, 3:])
    torch.testing.assert_close(transform_points(moved, torch.linalg.inv(scene.matrix())), points, atol=2e-5, rtol=0)


def test_order_is_turn_then_mirror_then_scale_then_shift() -> None:
    scene = BevTransform(rotation=math.pi / 2, scale=2.0, translation=(10.0, 20.0, 30.0), flip_x=True)
    moved = transform_points(torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), scene.matrix())
    torch.testing.assert_close(moved, torch.tensor([[10.0, 22.0, 32.0], [12.0, 20.0, 30.0]]))


def test_draws_stay_in_the_training_ranges() -> None:
    rng = np.random.default_rng(0)
    images = [draw_image_transform(rng) for _ in range(300)]
    assert 0.38 <= min(image.zoom for image in images) * 0.48 < 0.385
    assert 0.545 < max(image.zoom for image in images) * 0.48 <= 0.55
    assert 5.3 < max(abs(image.rotation) for image in images) <= 5.4
    assert 100 < sum(image.flip for image in images) < 200
    scenes = [draw_bev_transform(rng) for _ in range(300)]
    assert 0.77 < max(abs(scene.rotation) for scene in scenes) <= math.pi / 4
    assert 0.9 <= min(scene.scale for scene in scenes) < 0.91
    assert 1.09 < max(scene.scale for scene in scenes) <= 1.1
    assert {(scene.flip_x, scene.flip_y) for scene in scenes} == {(a, b) for a in (True, False) for b in (True, False)}
