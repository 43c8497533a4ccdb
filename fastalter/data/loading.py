"""From a data specification, as the verbs take it, to batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastalter.data.augment import RESIZE_MARGIN
from fastalter.data.batch import Batch
from fastalter.data.check import check_batch
from fastalter.data.example import DESCRIPTION, example_batch
from fastalter.data.prepare import PrepareOptions, collate, prepare
from fastalter.data.sample import Sample
from fastalter.data.views import Batches, shuffled_passes, views_of
from fastalter.errors import DataError

if TYPE_CHECKING:
    from fastalter.data.synthetic import SyntheticFrames, SyntheticSettings
    from fastalter.models.config import BEVFusionConfig

KNOWN = "nuscenes:/path[:version[:split]], frames:DIR, synthetic, example"

SYNTHETIC_SEED = 1 << 40
"""Added to the seed of `synthetic`: the generator's command writes datasets of small seeds."""
POOL = 400
"""Scenes of two frames each that `training_batches` draws synthetic batches from."""


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

    spec          nuscenes:/path[:version[:split]] | frames:DIR | synthetic (also for None; never samples
                  that the embedded checkpoint was trained on) | example (random data)
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
    config = config.with_image_size(height, width)

    def check(batch: Batch) -> Batch:
        check_batch(batch, config)
        return batch

    if spec == "example":
        make = lambda index: check(example_batch(config, batch_size, seed, index))  # noqa: E731
        return Batches(make, batches, DESCRIPTION, synthetic=True)
    options = prepare_options(config)
    if spec is None or spec == "synthetic":
        made = synthetic_samples(batches * batch_size, options.image_size, sweeps, seed, keep_unseen)
        return Batches(
            lambda index: check(collate([prepare(made(slot), options) for slot in _slots(index, batch_size)])),
            batches,
            f"synthetic: {batches} x {batch_size} samples",
            synthetic=True,
        )
    frames = open_frames(spec, sweeps=sweeps, keep_unseen=keep_unseen)
    return views_of(frames, spec, batches=batches, batch_size=batch_size, options=options, seed=seed, check=check)


def prepare_options(config: BEVFusionConfig) -> PrepareOptions:
    """How samples are prepared for a model: its image size, and points and boxes cut to its range."""
    return PrepareOptions(config.camera.image_size, config.lidar.point_cloud_range)


def training_batches(
    spec: str | None,
    *,
    config: BEVFusionConfig,
    batch_size: int,
    sweeps: int = 0,
    seed: int = 0,
    augment: bool = False,
) -> Callable[[int], Batch]:
    """step -> batch, without end: every pass goes through all frames in an order of its own, drawn from (seed, pass).

    spec      as `load` takes it (but for example); synthetic: POOL scenes, made again whenever they are asked for
    augment   each pass sees an augmented view of each frame, drawn from (seed, frame, pass); else the frame itself

    A step's batch depends on the arguments and the step alone. Frames without boxes are among them; the rest of a pass
    that does not fill a batch is left out. Raises `DataError`, from here or when a batch is asked for.
    """
    for name, value, least in (("batch size", batch_size, 1), ("sweeps", sweeps, 0), ("seed", seed, 0)):
        if value < least:
            raise DataError(f"{name} is {value}; it must be at least {least}")
    options = prepare_options(config)
    synthetic = spec is None or spec == "synthetic"
    frames: Sequence[Sample]
    if synthetic:
        frames = synthetic_frames(POOL, options.image_size, sweeps, seed)
    else:
        frames = open_frames(str(spec), sweeps=sweeps)
    name = "synthetic" if synthetic else str(spec)
    return shuffled_passes(frames, name, batch_size=batch_size, options=options, seed=seed, augment=augment)


def _slots(index: int, batch_size: int) -> range:
    return range(index * batch_size, (index + 1) * batch_size)


def synthetic_samples(
    count: int, image_size: tuple[int, int], sweeps: int, seed: int, keep_unseen: bool = False
) -> Callable[[int], Sample]:
    """`count` synthetic samples, each the last keyframe of a scene of its own."""
    frames = synthetic_frames(count, image_size, sweeps, seed, keep_unseen)
    return lambda slot: frames[2 * slot + 1]


def synthetic_frames(
    scenes: int, image_size: tuple[int, int], sweeps: int, seed: int, keep_unseen: bool = False
) -> SyntheticFrames:
    """Both keyframes of each of `scenes` synthetic scenes, for images (H, W) of the network.

    The seed is moved, so that no sample is one of a dataset that the generator's command writes.
    """
    from fastalter.data.synthetic import SyntheticFrames

    settings = synthetic_settings(image_size, sweeps, seed + SYNTHETIC_SEED, scenes=scenes, samples=2)
    return SyntheticFrames(settings, sweeps, keep_unseen)


def synthetic_settings(
    image_size: tuple[int, int], sweeps: int, seed: int, *, scenes: int = 0, val_scenes: int = 0, samples: int = 4
) -> SyntheticSettings:
    """Settings whose images and scans are as fine as a network with images (H, W) can use."""
    from fastalter.data.synthetic import SyntheticSettings

    width = round(RESIZE_MARGIN * image_size[1])
    height = max(round(width * 9 / 16), image_size[0])
    azimuth_steps = min(round(360 * width / 192), 1085)
    return SyntheticSettings(scenes, val_scenes, samples, min(sweeps, 9), (height, width), azimuth_steps, seed)


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
