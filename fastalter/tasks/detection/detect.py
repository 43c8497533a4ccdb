"""A model over batches, to detections by sample token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from fastalter.data.batch import Batch
from fastalter.errors import DataError, ModelError
from fastalter.report.progress import ProgressFunction
from fastalter.tasks.detection.nms import nms
from fastalter.tasks.detection.results import Detections
from fastalter.training.guard import in_mode

STAGE = "detect"


class Head(Protocol):
    """What `detect` asks of a model's `head`."""

    def decode(self, predictions: dict[str, Tensor]) -> list[Detections]:
        """Per sample: boxes canonical [K, 9], scores [K], labels [K] int64."""


@torch.no_grad()
def detect(
    model: nn.Module,
    batches: Iterable[Batch],
    progress: ProgressFunction | None = None,
    radii: Mapping[str, float] | None = None,
) -> dict[str, Detections]:
    """Detections on the CPU of every sample of `batches`, by token; boxes in the unaugmented LiDAR frame.

    The model makes predictions of a batch, `model.head.decode` boxes of those; it runs in eval mode where its weights
    are, and every module's mode is put back. `radii` (metres per class name) asks for circle NMS, None for none.
    Raises DataError for batches with an augmented scene, without tokens, or with a token that was there before, and
    ModelError for predictions that are not finite: decoding would drop them, and the metric would call it no box.
    """
    head = cast(Head, model.head)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    total = len(batches) if isinstance(batches, Sized) else 0
    found: dict[str, Detections] = {}
    report = progress or (lambda stage, done, total: None)
    report(STAGE, 0, total)
    with in_mode(model, train=False):
        for done, batch in enumerate(batches, 1):
            _check(batch, found)
            predictions = model(batch.to(device))
            _check_finite(predictions, batch)
            decoded = head.decode(predictions)
            for token, detections in zip(batch.tokens, decoded, strict=True):
                found[token] = _finish(detections, radii)
            report(STAGE, done, max(done, total))
    return found


def _finish(detections: Detections, radii: Mapping[str, float] | None) -> Detections:
    detections = {name: value.cpu() for name, value in detections.items()}
    if radii is None:
        return detections
    kept = nms(detections["boxes"], detections["scores"], detections["labels"], radii)
    return {name: value[kept] for name, value in detections.items()}


def _check_finite(predictions: Mapping[str, Tensor], batch: Batch) -> None:
    for name, value in predictions.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(
                f"sample {batch.tokens[0]} or another of its batch: the model predicts NaN or Inf in {name}; check its "
                "weights and batch norm statistics"
            )


def _check(batch: Batch, found: Mapping[str, Detections]) -> None:
    if len(batch.tokens) != len(batch):
        raise DataError(f"a batch of {len(batch)} samples has {len(batch.tokens)} tokens; give one per sample")
    for place, (token, matrix) in enumerate(zip(batch.tokens, batch.lidar_aug, strict=True)):
        if not torch.equal(matrix, torch.eye(4).to(matrix)):
            raise DataError(f"sample {token}: its scene is augmented (lidar_aug); detect on unaugmented frames")
        if token in found or token in batch.tokens[:place]:
            raise DataError(f"sample {token} comes twice; give every frame once, without augmented views")
