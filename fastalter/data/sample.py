"""What every loader yields: one frame's files, calibration and boxes, before any resizing or augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastalter.errors import DataError

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
"""Order of a nuScenes frame's cameras, as the published models were trained."""
POINT_COLUMNS = 5
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sweep:
    """One LiDAR scan.

    source   file of float32 rows (x, y, z, intensity 0-255, ring), or such an array [P, 5]
    to_key   [4, 4] float64, this scan's LiDAR frame -> the key scan's LiDAR frame
    lag      seconds from this scan to the key scan; 0 for the key scan itself
    """

    source: Path | Array
    to_key: Array
    lag: float = 0.0


@dataclass(frozen=True)
class Sample:
    """One frame with N cameras; small, as files are opened by `read_image` and `read_points` only.

    images         N image files, or uint8 arrays [H, W, 3] (RGB)
    sweeps         the key scan, then earlier ones
    lidar2camera   [N, 4, 4] float64, LiDAR frame at the key scan's time -> camera frame at the image's time
    intrinsics     [N, 4, 4] float64, pinhole matrices padded to 4x4
    boxes          [G, 9] float64, canonical convention of `fastalter.data.boxes`, LiDAR frame; velocities may be NaN
    labels         [G] int64, indices into `CLASS_NAMES` or -1
    """

    token: str
    images: tuple[Path | Array, ...]
    sweeps: tuple[Sweep, ...]
    lidar2camera: Tensor
    intrinsics: Tensor
    boxes: Tensor
    labels: Tensor

    def require_files(self) -> None:
        """Raise `DataError` naming the first sensor file that is not there."""
        for source in (*self.images, *(sweep.source for sweep in self.sweeps)):
            if isinstance(source, Path) and not source.is_file():
                raise DataError(
                    f"{source}: sensor file of sample {self.token} is missing; restore it or leave the sample out"
                )


def read_image(sample: Sample, camera: int) -> Image.Image:
    """The RGB image of one camera; `DataError` names a file that is missing or damaged."""
    source = sample.images[camera]
    if not isinstance(source, Path):
        return Image.fromarray(source)
    try:
        with Image.open(source) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(
            f"{source}: image of sample {sample.token} is missing; restore it or leave the sample out"
        ) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{source}: image of sample {sample.token} cannot be decoded ({reason}); fetch it again"
        ) from error


def read_points(sample: Sample, close_radius: float = 1.0) -> Tensor:
    """All scans of a sample in the key scan's frame: [P, 5] float32 x, y, z, intensity, time lag.

    The ring index on disk is dropped. Points of earlier scans with |x| and |y| both below `close_radius` (m) in their
    own frame are the moving ego vehicle and go; the key scan keeps them, as the published models were trained.
    """
    clouds = []
    for number, sweep in enumerate(sample.sweeps):
        raw = _read_scan(sweep.source, sample.token)
        if number > 0:
            raw = raw[~(np.abs(raw[:, :2]) < close_radius).all(axis=1)]
        cloud = np.empty((len(raw), POINT_COLUMNS), dtype=np.float32)
        cloud[:, :3] = raw[:, :3] @ sweep.to_key[:3, :3].T + sweep.to_key[:3, 3]
        cloud[:, 3] = raw[:, 3]
        cloud[:, 4] = sweep.lag
        clouds.append(cloud)
    return torch.from_numpy(np.concatenate(clouds))


def was_seen(annotation: dict[str, Any]) -> bool:
    """Whether LiDAR or radar hit the object; true when the annotation does not say."""
    known = [annotation[key] for key in ("num_lidar_pts", "num_radar_pts") if annotation.get(key) is not None]
    return not known or sum(known) > 0


def _read_scan(source: Path | Array, token: str) -> Array:
    if not isinstance(source, Path):
        return source
    try:
        values = np.frombuffer(source.read_bytes(), dtype=np.uint8)
    except OSError as error:
        raise DataError(
            f"{source}: LiDAR scan of sample {token} cannot be read ({error.strerror}); restore it"
        ) from error
    if len(values) == 0 or len(values) % (4 * POINT_COLUMNS):
        raise DataError(
            f"{source}: LiDAR scan of sample {token} has {len(values)} bytes, which is not a whole number of points of "
            f"{POINT_COLUMNS} float32 (x, y, z, intensity, ring); fetch it again"
        )
    scan = values.view(np.float32).reshape(-1, POINT_COLUMNS)
    bad = int((~np.isfinite(scan[:, :4])).any(axis=1).sum())
    if bad:
        raise DataError(
            f"{source}: LiDAR scan of sample {token} has NaN or Inf in {bad} of {len(scan)} points; clean the file"
        )
    return scan
