"""Training targets of the TransFusion head: a Gaussian heatmap, and labels and codes of the matched proposals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastalter.data.boxes import BOX_SIZE, BoxConvention, from_canonical, to_canonical
from fastalter.errors import DataError
from fastalter.tasks.detection.assigner import assign
from fastalter.tasks.detection.coding import CODE_SIZE, BevGrid, decode_boxes, encode_boxes, join_codes


@dataclass(frozen=True)
class Targets:
    """What the losses compare with; B samples, P proposals, C classes.

    heatmap   [B, C, X, Y]
    labels    [B, P] int64, C for a proposal without a box
    codes     [B, P, 10], zero where there is no target
    weights   [B, P, 10] 1 where there is one: NaN velocities and unmatched proposals have 0
    ious      [B, P] 3D IoU of the matched pairs, 0 elsewhere
    """

    heatmap: Tensor
    labels: Tensor
    codes: Tensor
    weights: Tensor
    ious: Tensor

    @property
    def positives(self) -> Tensor:
        """Number of matched proposals per sample, [B]."""
        return (self.labels < self.heatmap.shape[1]).sum(1)


def gaussian_radius(length: float, width: float, min_overlap: float) -> float:
    """Largest shift of a box's corners, in cells, that keeps an IoU of `min_overlap` (CornerNet's rule as published).

    The smallest of three cases: both corners shifted the same way, both inwards, both outwards. Published code divides
    by 2 where the solution of the quadratic would divide by 2a; models were trained with it, so it stays.
    """
    total, area = length + width, length * width
    same_way = (total + math.sqrt(total**2 - 4 * area * (1 - min_overlap) / (1 + min_overlap))) / 2
    inwards = (2 * total + math.sqrt(4 * total**2 - 16 * (1 - min_overlap) * area)) / 2
    b = -2 * min_overlap * total
    outwards = (b + math.sqrt(b**2 - 16 * min_overlap * (min_overlap - 1) * area)) / 2
    return min(same_way, inwards, outwards)


def draw_heatmap(
    boxes: Tensor, labels: Tensor, num_classes: int, grid: BevGrid, min_overlap: float, min_radius: int
) -> Tensor:
    """Gaussian peaks [C, X, Y], in the dtype of the boxes, of canonical boxes [G, 9] with labels [G].

    A peak is 1 in the cell of the box centre; where peaks of a class overlap, the larger value counts. Cells are
    computed in float64, so that float32 and float64 runs draw the same map.
    """
    heatmap = boxes.new_zeros(num_classes, *grid.shape)
    boxes = boxes.double()
    centres = grid.to_cells(boxes[:, :2]).int()
    steps_x, steps_y = (torch.arange(size, device=boxes.device) for size in grid.shape)
    for (x, y), (length, width), label in zip(centres.tolist(), boxes[:, 3:5].tolist(), labels.tolist(), strict=True):
        size = length / grid.cell[0], width / grid.cell[1]
        radius = max(min_radius, int(gaussian_radius(*size, min_overlap)))
        peak = _gaussian(steps_x - x, radius)[:, None] * _gaussian(steps_y - y, radius)
        torch.maximum(heatmap[label], peak.to(heatmap.dtype), out=heatmap[label])
    return heatmap


def _gaussian(offset: Tensor, radius: int) -> Tensor:
    """Bell over integer offsets, cut off beyond the radius; its standard deviation is a sixth of the window."""
    sigma = (2 * radius + 1) / 6
    return torch.exp(-offset.double().square() / (2 * sigma**2)) * (offset.abs() <= radius)


def usable_boxes(boxes: Tensor, labels: Tensor, grid: BevGrid, num_classes: int, sample: int) -> tuple[Tensor, Tensor]:
    """Boxes [G, 9] and labels [G] int64 without those labelled -1 or centred outside the range.

    Raises DataError for a wrong shape, a label that is no class, and a box whose place or size is not a usable number.
    """
    if boxes.ndim != 2 or boxes.shape[1] != BOX_SIZE or labels.shape != boxes.shape[:1]:
        raise DataError(
            f"sample {sample}: boxes of shape {tuple(boxes.shape)} with labels of shape {tuple(labels.shape)}; "
            f"expected [G, {BOX_SIZE}] and [G]"
        )
    kept = labels >= 0
    boxes, labels = boxes[kept], labels[kept].long()
    if len(labels) and int(labels.max()) >= num_classes:
        raise DataError(f"sample {sample}: label {int(labels.max())}; the head knows classes 0 to {num_classes - 1}")
    broken = ~torch.isfinite(boxes[:, :7]).all(1) | (boxes[:, 3:6] <= 0).any(1)
    if broken.any():
        values = [round(value, 3) for value in boxes[broken][0, :7].tolist()]
        raise DataError(f"sample {sample}: box {values} (x, y, z, l, w, h, yaw) has no usable place or size; remove it")
    inside = grid.contains(boxes[:, :2])
    return boxes[inside], labels[inside]


@torch.no_grad()
def build_targets(
    predictions: dict[str, Tensor],
    boxes: list[Tensor],
    labels: list[Tensor],
    *,
    grid: BevGrid,
    convention: BoxConvention,
    min_overlap: float,
    min_radius: int,
) -> Targets:
    """Targets for predictions of the head, given canonical boxes and labels of each sample.

    The codes are those of the head's box convention; assignment happens on canonical boxes. Raises DataError if the
    boxes cannot be used or are not those of as many samples.
    """
    logits = predictions["heatmap"].transpose(1, 2)
    batch, proposals, classes = logits.shape
    if len(boxes) != batch or len(labels) != batch:
        raise DataError(f"predictions of {batch} samples, but boxes of {len(boxes)} and labels of {len(labels)}")
    proposed = to_canonical(decode_boxes(join_codes(predictions), grid), convention)
    targets = Targets(
        heatmap=logits.new_zeros(batch, classes, *grid.shape),
        labels=torch.full((batch, proposals), classes, device=logits.device),
        codes=logits.new_zeros(batch, proposals, CODE_SIZE),
        weights=logits.new_zeros(batch, proposals, CODE_SIZE),
        ious=logits.new_zeros(batch, proposals),
    )
    for i in range(batch):
        sample_boxes, sample_labels = usable_boxes(boxes[i].to(logits), labels[i].to(logits.device), grid, classes, i)
        if not len(sample_boxes):
            continue
        targets.heatmap[i] = draw_heatmap(sample_boxes, sample_labels, classes, grid, min_overlap, min_radius)
        match = assign(proposed[i], logits[i], sample_boxes, sample_labels, grid)
        codes = encode_boxes(from_canonical(sample_boxes, convention), grid)[match.boxes]
        known = torch.isfinite(codes)
        targets.labels[i, match.proposals] = sample_labels[match.boxes]
        targets.codes[i, match.proposals] = codes.where(known, 0.0)
        targets.weights[i, match.proposals] = known.to(codes.dtype)
        targets.ious[i, match.proposals] = match.ious.to(codes.dtype)
    return targets
