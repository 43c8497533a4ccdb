"""A model over all frames of a split, to the official metrics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from fastalter.data.drop import check_droppable, without
from fastalter.data.loading import prepare_options
from fastalter.data.nuscenes import NuScenesFrames
from fastalter.data.views import Batches, in_order
from fastalter.errors import ModelError
from fastalter.report.progress import ProgressFunction
from fastalter.tasks.detection.detect import detect
from fastalter.tasks.detection.evaluate import DetectionResult, check_split, evaluate_detections

if TYPE_CHECKING:
    from fastalter.models.config import BEVFusionConfig


def evaluate_model(
    model: nn.Module,
    frames: NuScenesFrames,
    *,
    batch_size: int = 8,
    drop: str | None = None,
    folder: Path | None = None,
    progress: ProgressFunction | None = None,
    batches: Batches | None = None,
) -> DetectionResult:
    """mAP, NDS and errors by nuScenes' DetectionEval of an in-tree model over every frame of a split.

    model     runs in eval mode where its weights are; every module's mode is put back
    frames    of a named split; the truth is read from their tables, whatever `keep_unseen` says
    drop      a sensor that is dark in every frame (see `data.drop.without`), or None
    folder    where results.json and metrics_summary.json go; made where missing, None keeps neither
    batches   the same frames as `frames_for` prepares them, for a caller that evaluates many models on one split and
              keeps them in memory; `batch_size` then has no say

    Raises:
        ModelError: the model has no configuration, or predicts NaN or infinities.
        DataError: a split that cannot be evaluated, an unknown sensor, missing files: all before the model runs.
    """
    config = config_of(model)
    if drop is not None:
        check_droppable(drop)
    check_split(frames)
    if batches is None:
        batches = frames_for(config, frames, batch_size=batch_size)
    if drop is not None:
        batches = _dark(batches, drop)
    found = detect(model, batches, progress)
    sensors = [sensor for sensor in config.sensors if sensor != drop]
    return evaluate_detections(found, frames, folder=folder, sensors=sensors)


def frames_for(
    config: BEVFusionConfig, frames: NuScenesFrames, *, batch_size: int = 8, cache_bytes: int = 0
) -> Batches:
    """Every frame of a split, prepared for a model; up to `cache_bytes` of them stay in memory once they were read."""
    options = prepare_options(config)
    return in_order(frames, str(frames.split), batch_size=batch_size, options=options, cache_bytes=cache_bytes)


def _dark(batches: Batches, sensor: str) -> Batches:
    description = f"{batches.description}, {sensor} dropped"
    return Batches(lambda index: without(batches[index], sensor), len(batches), description, cache_bytes=0)


def config_of(model: nn.Module) -> BEVFusionConfig:
    """The configuration that an in-tree model carries. Raises ModelError where there is none."""
    from fastalter.models.config import BEVFusionConfig

    config = getattr(model, "config", None)
    if not isinstance(config, BEVFusionConfig):
        raise ModelError(
            f"a {type(model).__name__} has no configuration, which says how frames are prepared for it; evaluate an "
            "in-tree model, or use tasks.detection.detect and evaluate_detections on your own batches"
        )
    return config
