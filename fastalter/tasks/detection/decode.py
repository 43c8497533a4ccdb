"""Predictions of the TransFusion head to boxes, scores and labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastalter.data.boxes import BoxConvention, to_canonical
from fastalter.tasks.detection.coding import BevGrid, decode_boxes, join_codes


@torch.no_grad()
def decode_predictions(
    predictions: dict[str, Tensor], *, grid: BevGrid, convention: BoxConvention, post_center_range: Sequence[float]
) -> list[dict[str, Tensor]]:
    """One dict per sample: boxes canonical [K, 9], scores [K] in (0, 1], labels [K] int64.

    A proposal keeps the class of the heatmap peak it grew from; its score is the class probability times the height of
    that peak. Proposals on no peak (score 0) are dropped, and boxes whose x, y or bottom z leaves `post_center_range`.
    """
    boxes = decode_boxes(join_codes(predictions), grid)
    labels = predictions["query_labels"]
    score_maps = predictions["heatmap"].sigmoid() * predictions["query_heatmap_score"]
    scores = score_maps.gather(1, labels[:, None])[:, 0]
    lower, upper = boxes.new_tensor(post_center_range[:3]), boxes.new_tensor(post_center_range[3:])
    kept = (scores > 0) & ((boxes[..., :3] >= lower) & (boxes[..., :3] <= upper)).all(-1)
    return [
        {
            "boxes": to_canonical(boxes[i][kept[i]], convention),
            "scores": scores[i][kept[i]],
            "labels": labels[i][kept[i]],
        }
        for i in range(len(boxes))
    ]
