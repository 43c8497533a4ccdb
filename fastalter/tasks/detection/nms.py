"""Suppression of detections of one class that stand too close to a better one (CenterPoint's circle NMS)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastalter.data.batch import CLASS_NAMES


def nms(boxes: Tensor, scores: Tensor, labels: Tensor, radii: Mapping[str, float]) -> Tensor:
    """Indices [M] of the detections that stay, best score first, equal scores by index.

    A box goes if its centre lies within the radius of its class (metres, x and y) of a better box of that class that
    stays. Classes that `radii` does not name keep all theirs: TransFusion suppresses nothing, at most pedestrians and
    cones. CenterPoint compares squared distances, so its published numbers are squares of these radii.
    """
    centres = boxes[:, :2].double()
    kept = torch.ones_like(labels, dtype=torch.bool)
    for name, radius in radii.items():
        members = (labels == CLASS_NAMES.index(name)).nonzero()[:, 0]
        members = members[scores[members].argsort(descending=True, stable=True)]
        offsets = centres[members][:, None] - centres[members][None]
        kept[members] = _greedy(offsets.square().sum(-1) <= radius**2)
    order = scores.argsort(descending=True, stable=True)
    return order[kept[order]]


def _greedy(close: Tensor) -> Tensor:
    """Which of K boxes, best first, stay, given which pairs [K, K] are too close."""
    stays = torch.ones(len(close), dtype=torch.bool, device=close.device)
    for row in range(len(close)):
        if stays[row]:
            stays[row + 1 :] &= ~close[row, row + 1 :]
    return stays
