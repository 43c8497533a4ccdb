"""One-to-one assignment of proposals to boxes by the Hungarian method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fastalter.errors import ScoringError
from fastalter.tasks.detection.coding import BevGrid
from fastalter.tasks.detection.rotated_iou import iou_3d

CLASS_WEIGHT = 0.15
CENTRE_WEIGHT = 0.25
IOU_WEIGHT = 0.25
TIE_WEIGHT = 1e-6
"""Of the squared centre distance. By L1 alone, two proposals that lie on one side of two boxes cost the same both ways
round, whatever their distances, and rounding would choose. This chooses, and is too small to decide anything else."""


@dataclass(frozen=True)
class Assignment:
    """Matched pairs of one sample: indices of proposals and of boxes [K] int64, and their 3D IoU [K] float64."""

    proposals: Tensor
    boxes: Tensor
    ious: Tensor


def focal_cost(logits: Tensor, labels: Tensor, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """What calling proposal p class labels[g] would change in the focal loss: [P, G] from logits [P, C], labels [G]."""
    epsilon = 1e-12
    probability = logits.sigmoid()
    negative = -(1 - probability + epsilon).log() * (1 - alpha) * probability**gamma
    positive = -(probability + epsilon).log() * alpha * (1 - probability) ** gamma
    return (positive - negative)[:, labels]


@torch.no_grad()
def assign(proposals: Tensor, logits: Tensor, boxes: Tensor, labels: Tensor, grid: BevGrid) -> Assignment:
    """Match canonical proposals [P, 9] with logits [P, C] to canonical boxes [G, 9] with labels [G].

    min(P, G) pairs, ordered by proposal. Costs: focal 0.15, L1 distance of the centres in units of the range 0.25,
    negative 3D IoU 0.25; equal totals go to the smaller squared distances (`TIE_WEIGHT`). In float64 on the tensors'
    device, then solved on the CPU, so that equal inputs give equal pairs, and nearly equal ones as a rule.
    Raises ScoringError if the predictions are not finite.
    """
    proposals, logits, boxes = proposals.double(), logits.double(), boxes.double()
    iou = iou_3d(proposals, boxes)
    extent = boxes.new_tensor(grid.upper) - boxes.new_tensor(grid.lower)
    offset = (proposals[:, None, :2] - boxes[None, :, :2]) / extent
    distance = CENTRE_WEIGHT * offset.abs().sum(-1) + TIE_WEIGHT * offset.square().sum(-1)
    cost = CLASS_WEIGHT * focal_cost(logits, labels) + distance - IOU_WEIGHT * iou
    if not torch.isfinite(cost).all():
        raise ScoringError(
            "detection head: its predictions hold NaN or infinite values, so boxes cannot be assigned; "
            "check the weights, or lower the learning rate if they were trained here"
        )
    rows, columns = linear_sum_assignment(cost.cpu().numpy())
    proposal_index = torch.as_tensor(rows, device=iou.device)
    box_index = torch.as_tensor(columns, device=iou.device)
    return Assignment(proposal_index, box_index, iou[proposal_index, box_index])
