"""From a data specification, as the verbs take it, to batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastalter.data.batch import Batch
from fastalter.data.check import check_batch
from fastalter.data.example import DESCRIPTION, example_batch
from fastalter.data.prepare import PrepareOptions
from fastalter.data.sample import Sample
from fastalter.data.views import Batches, views_of
from fastalter.errors import DataError

if TYPE_CHECKING:
    from fastalter.models.config import BEVFusionConfig

KNOWN = "nuscenes:/path[:version[:split]], frames:DIR, example"


def load(
    spec: str | None = None,
    *,
    config: BEVFusionConfig,
    batches: int = 5,
    batch_size: int = 2,
    image_size: tuple[int, int] | None = None,
    sweeps: int = 0,
    seed: int = 0,
    keep_unseen: bool = False,
) -> Batches:
    """Batches for a model, list-like and re-iterable; files are read and every batch is checked when it is asked for.

    spec          nuscenes:/path[:version[:split]] | frames:DIR | example (random data, also for None)
    image_size    (H, W) of the network's images, the config's by default
    sweeps        earlier LiDAR scans added to each key scan, with their time lag in the last column
    keep_unseen   keep boxes that no LiDAR or radar point hit

    Points and boxes are cut to the config's point_cloud_range. Raises `DataError` in one line for anything that is not
    there or cannot be used.
    """
    for name, value, least in (("batches", batches, 1), ("batch size", batch_size, 1), ("sweeps", sweeps, 0)):
        if value < least:
            raise DataError(f"{name} is {value}; it must be at least {least}")
    height, width = image_size or config.camera.image_size
    stride = config.camera.feature_stride
    if height < stride or width < stride or height % stride or width % stride:
        raise DataError(
            f"image size {height}x{width}: both must be positive multiples of {stride}, the stride of the features"
        )
    config = replace(config, camera=replace(config.camera, image_size=(height, width)))

    def check(batch: Batch) -> Batch:
        check_batch(batch, config)
        return batch

    if spec is None or spec == "example":
        return Batches(lambda index: check(example_batch(config, batch_size, seed, index)), batches, DESCRIPTION)
    frames = open_frames(spec, sweeps=sweeps, keep_unseen=keep_unseen)
    options = PrepareOptions((height, width), config.lidar.point_cloud_range)
    return views_of(frames, spec, batches=batches, batch_size=batch_size, options=options, seed=seed, check=check)


def open_frames(spec: str, *, sweeps: int = 0, keep_unseen: bool = False) -> Sequence[Sample]:
    """The raw frames behind a specification, without reading a sensor file."""
    kind, _, rest = spec.partition(":")
    if kind not in ("nuscenes", "frames") or not rest:
        raise DataError(f"data {spec!r} is not understood; known: {KNOWN}")
    if kind == "frames":
        from fastalter.data.frames import FrameFolder

        return FrameFolder(Path(rest).expanduser(), sweeps, keep_unseen)
    from fastalter.data.nuscenes import NuScenesFrames

    root, version, split = _split_path(rest)
    return NuScenesFrames(root, version, split, sweeps, keep_unseen)


def _split_path(rest: str) -> tuple[Path, str | None, str | None]:
    """(path, version, split) of path[:version[:split]]; the path is the longest one that is a folder."""
    parts = rest.split(":")
    lengths = [n for n in range(len(parts), 0, -1) if Path(":".join(parts[:n])).expanduser().is_dir()]
    used = lengths[0] if lengths else max(1, len(parts) - 2)
    options = parts[used:]
    if len(options) > 2:
        raise DataError(f"nuscenes:{rest}: too many parts after the path; known: {KNOWN}")
    version, split = (*options, "", "")[:2]
    return Path(":".join(parts[:used])).expanduser(), version or None, split or None
