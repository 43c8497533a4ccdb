"""A sensor gone dark, at the level of data: what a model sees when a camera or the LiDAR fails."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fastalter.data.augment import IMAGE_MEAN, IMAGE_STD
from fastalter.data.batch import Batch
from fastalter.data.sample import CAMERAS
from fastalter.errors import DataError

DROPPABLE = ("camera", "lidar", *CAMERAS)
"""What `without` takes: all cameras, the LiDAR, or one camera."""


def check_droppable(sensor: str) -> None:
    """Raise `DataError`, with the names there are, for a sensor that cannot be dropped."""
    if sensor not in DROPPABLE:
        raise DataError(f"there is no sensor {sensor!r} to drop; known: {', '.join(DROPPABLE)}")


def without(batch: Batch, sensor: str) -> Batch:
    """The batch with a sensor dark; the given one stays as it is, tensors that do not change are shared.

    camera               every image black: raw zero pixels, normalised
    lidar                no point in any scan, so no depth hints either
    CAM_FRONT and so on  that camera's images black; needs all six of a nuScenes frame, in the order of `CAMERAS`

    Raises `DataError` for another name, and for a single camera of a batch that has not six.
    """
    check_droppable(sensor)
    if sensor == "lidar":
        return replace(batch, points=[points[:0] for points in batch.points])
    if sensor == "camera":
        return replace(batch, images=_black(batch.images))
    if batch.images.shape[1] != len(CAMERAS):
        raise DataError(
            f"cannot drop {sensor} from images of {batch.images.shape[1]} cameras: which one it is, is known for the "
            f"{len(CAMERAS)} of a nuScenes frame only; drop camera, which is all of them"
        )
    place = CAMERAS.index(sensor)
    images = batch.images.clone()
    images[:, place] = _black(images[:, place])
    return replace(batch, images=images)


def _black(images: Tensor) -> Tensor:
    """[..., 3, H, W] of the value that a zero pixel has after normalisation."""
    mean, std = images.new_tensor(IMAGE_MEAN), images.new_tensor(IMAGE_STD)
    return ((0 - mean) / std)[:, None, None].expand_as(images).clone()
