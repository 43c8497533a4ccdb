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
) -> DetectionResult:
    """mAP, NDS and errors by nuScenes' DetectionEval of an in-tree model over every frame of a split.

    model     runs in eval mode where its weights are; every module's mode is put back
    frames    of a named split; the truth is read from their tables, whatever `keep_unseen` says
    drop      a sensor that is dark in every frame (see `data.drop.without`), or None
    folder    where results.json and metrics_summary.json go; made where missing, None keeps neither

    Raises:
        ModelError: the model has no configuration, or predicts NaN or infinities.
        DataError: a split that cannot be evaluated, an unknown sensor, missing files: all before the model runs.
    """
    config = _config_of(model)
    if drop is not None:
        check_droppable(drop)
    check_split(frames)
    batches = in_order(frames, str(frames.split), batch_size=batch_size, options=prepare_options(config))
    if drop is not None:
        batches = _dark(batches, drop)
    found = detect(model, batches, progress)
    sensors = [sensor for sensor in config.sensors if sensor != drop]
    return evaluate_detections(found, frames, folder=folder, sensors=sensors)


def _dark(batches: Batches, sensor: str) -> Batches:
    description = f"{batches.description}, {sensor} dropped"
    return Batches(lambda index: without(batches[index], sensor), len(batches), description, cache_bytes=0)


def _config_of(model: nn.Module) -> BEVFusionConfig:
    from fastalter.models.config import BEVFusionConfig

    config = getattr(model, "config", None)
    if not isinstance(config, BEVFusionConfig):
        raise ModelError(
            f"a {type(model).__name__} has no configuration, which says how frames are prepared for it; evaluate an "
            "in-tree model, or use tasks.detection.detect and evaluate_detections on your own batches"
        )
    return config
