"""Depth supervision for a camera-only detector: its depth bins learn from LiDAR points, which it never takes as input.

Without a LiDAR the gradient of the detection losses alone teaches depth slowly. The idea is BEVDepth's (Li et al., AAAI
2023): a cross-entropy between the predicted bins and those of the nearest LiDAR point in each feature cell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, max_pool2d

from fastalter.data.batch import Batch
from fastalter.models.view_transform import DepthLSS, depth_image

if TYPE_CHECKING:
    from fastalter.models.bevfusion import BEVFusion

UNSUPERVISED = -1
"""Target of a cell without a LiDAR point, or with one outside of the bins."""


@torch.no_grad()
def depth_targets(batch: Batch, view: DepthLSS) -> Tensor:
    """Index of the depth bin of the nearest point in each feature cell, int64 [B, N, h, w], or UNSUPERVISED."""
    samples = zip(batch.points, batch.lidar2image, batch.image_aug, batch.lidar_aug, strict=True)
    depth = torch.stack([depth_image(*sample, view.image_size)[:, 0] for sample in samples])  # [B, N, H, W], 0: nothing
    bins, height, width, _ = view.frustum.shape
    cell = (view.image_size[0] // height, view.image_size[1] // width)
    nearest = -max_pool2d(-depth.where(depth > 0, torch.inf), cell)
    first, step = float(view.frustum[0, 0, 0, 2]), float(view.frustum[1, 0, 0, 2] - view.frustum[0, 0, 0, 2])
    index = ((nearest - first) / step).round()
    return index.where((index >= 0) & (index < bins), UNSUPERVISED).long()


def loss_with_depth(model: BEVFusion, batch: Batch, weight: float = 1.0) -> dict[str, Tensor]:
    """The model's own losses and loss_depth, `weight` times the mean cross-entropy of its depth bins."""
    view = model.get_submodule("encoders.camera.vtransform")
    assert isinstance(view, DepthLSS)
    outputs: list[Tensor] = []
    handle = view.depthnet.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        losses = model.loss(batch)
    finally:
        handle.remove()
    logits = outputs[0][:, : view.depth_bins]  # [B * N, D, h, w]
    targets = depth_targets(batch, view).flatten(0, 1)
    count = max(int((targets != UNSUPERVISED).sum()), 1)
    total = cross_entropy(logits.float(), targets, ignore_index=UNSUPERVISED, reduction="sum")
    return {**losses, "loss_depth": weight * total / count}
