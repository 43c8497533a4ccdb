"""From raw samples to a `Batch`: resize, augment, filter by range, stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastalter.data.augment import BevTransform, ImageTransform, normalise, transform_boxes, transform_points
from fastalter.data.batch import Batch
from fastalter.data.sample import Sample, read_image, read_points
from fastalter.errors import DataError


@dataclass(frozen=True)
class PrepareOptions:
    """image_size (H, W); point_cloud_range (x, y, z lower, then upper) that keeps points and boxes inside, or None."""

    image_size: tuple[int, int]
    point_cloud_range: tuple[float, ...] | None = None


def points_in_range(points: Tensor, bounds: Sequence[float]) -> Tensor:
    """[P] bool: strictly inside (x, y, z lower, x, y, z upper)."""
    return ((points[:, :3] > points.new_tensor(bounds[:3])) & (points[:, :3] < points.new_tensor(bounds[3:]))).all(-1)


def boxes_in_range(boxes: Tensor, bounds: Sequence[float]) -> Tensor:
    """[G] bool: centre inside in x and y; height does not count, as in the published training."""
    lower, upper = boxes.new_tensor(bounds[:2]), boxes.new_tensor(bounds[3:5])
    return ((boxes[:, :2] > lower) & (boxes[:, :2] < upper)).all(-1)


def usable_boxes(boxes: Tensor, labels: Tensor, bounds: Sequence[float] | None) -> int:
    """How many boxes a detection loss can learn from: of a known class and in range."""
    usable = labels >= 0
    if bounds is not None:
        usable = usable & boxes_in_range(boxes, bounds)
    return int(usable.sum())


def prepare(
    sample: Sample,
    options: PrepareOptions,
    bev: BevTransform | None = None,
    images: Sequence[ImageTransform] | None = None,
    view: str = "",
) -> Batch:
    """One sample as a `Batch` of one, float32; `images` holds one transform per camera, `view` is added to the token.

    Raises `DataError` for sensor files that are missing or damaged.
    """
    images = images or [ImageTransform()] * len(sample.images)
    pictures, image_aug = [], []
    for camera, transform in enumerate(images):
        picture = read_image(sample, camera)
        image_aug.append(transform.matrix((picture.height, picture.width), options.image_size))
        pictures.append(normalise(transform.apply(picture, options.image_size)))

    lidar_aug = (bev or BevTransform()).matrix()
    points = transform_points(read_points(sample), lidar_aug)
    boxes, labels = transform_boxes(sample.boxes, lidar_aug), sample.labels
    if options.point_cloud_range is not None:
        points = points[points_in_range(points, options.point_cloud_range)]
        inside = boxes_in_range(boxes, options.point_cloud_range)
        boxes, labels = boxes[inside], labels[inside]
    return Batch(
        images=torch.stack(pictures)[None],
        points=[points],
        lidar2image=(sample.intrinsics @ sample.lidar2camera)[None].float(),
        camera2lidar=torch.linalg.inv(sample.lidar2camera)[None].float(),
        intrinsics=sample.intrinsics[None].float(),
        image_aug=torch.stack(image_aug)[None].float(),
        lidar_aug=lidar_aug[None].float(),
        boxes=[boxes.float()],
        labels=[labels],
        tokens=[sample.token + view],
    )


def collate(batches: Sequence[Batch]) -> Batch:
    """Several batches as one; `DataError` if their cameras or image sizes differ."""
    shapes = {tuple(batch.images.shape[1:]) for batch in batches}
    if len(shapes) != 1:
        tokens = ", ".join(token for batch in batches for token in batch.tokens)
        raise DataError(f"samples {tokens}: images of shapes {sorted(shapes)} cannot share a batch; use batch size 1")

    def stack(name: str) -> Tensor:
        return torch.cat([getattr(batch, name) for batch in batches])

    return Batch(
        images=stack("images"),
        points=[points for batch in batches for points in batch.points],
        lidar2image=stack("lidar2image"),
        camera2lidar=stack("camera2lidar"),
        intrinsics=stack("intrinsics"),
        image_aug=stack("image_aug"),
        lidar_aug=stack("lidar_aug"),
        boxes=[boxes for batch in batches for boxes in batch.boxes],
        labels=[labels for batch in batches for labels in batch.labels],
        tokens=[token for batch in batches for token in batch.tokens],
    )
