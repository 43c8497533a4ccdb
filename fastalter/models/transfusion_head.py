"""TransFusion detection head: proposals from heatmap peaks, one decoder layer, one small head per quantity.

Maps are [B, C, X, Y]; positions are in cells of the map, the centre of cell (i, j) being (i + 0.5, j + 0.5).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from fastalter.data.batch import CLASS_NAMES
from fastalter.errors import ModelError
from fastalter.models.config import HeadConfig, LidarConfig
from fastalter.models.transformer import DecoderLayer
from fastalter.tasks.detection.coding import CODE_SIZE, BevGrid, join_codes
from fastalter.tasks.detection.decode import decode_predictions
from fastalter.tasks.detection.losses import gaussian_focal_loss, sigmoid_focal_loss, weighted_l1_loss
from fastalter.tasks.detection.targets import build_targets

BBOX_LOSS_WEIGHT = 0.25
PREDICTION_CHANNELS = 64
SMALL_CLASSES = [CLASS_NAMES.index(name) for name in ("pedestrian", "traffic_cone")]
"""Smaller than a cell: neighbouring cells may hold neighbouring objects, so every cell is a peak of its own."""


class ConvBlock(nn.Module):
    """Convolution without bias, batch norm, ReLU; over maps (`nn.Conv2d`, 3x3) or proposals (`nn.Conv1d`, 1)."""

    def __init__(self, conv: nn.Conv1d | nn.Conv2d, bn: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv = conv
        self.bn = bn

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.bn(self.conv(x)))


class PredictionHeads(nn.Module):
    """One two-layer head per quantity, applied to every proposal: [B, channels, P] to {name: [B, k, P]}."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        sizes = {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2, "heatmap": num_classes}
        for name, size in sizes.items():
            hidden = ConvBlock(
                nn.Conv1d(channels, PREDICTION_CHANNELS, 1, bias=False), nn.BatchNorm1d(PREDICTION_CHANNELS)
            )
            self.add_module(name, nn.Sequential(hidden, nn.Conv1d(PREDICTION_CHANNELS, size, 1)))

    def forward(self, query: Tensor) -> dict[str, Tensor]:
        return {name: head(query) for name, head in self.named_children()}


class TransFusionHead(nn.Module):
    """The head of BEVFusion, with its losses and its decoding.

    `box_convention` is that of the weights: it decides what the size and yaw outputs mean. Boxes that come in and go
    out are canonical (`fastalter.data.boxes`).
    """

    def __init__(
        self, in_channels: int, head: HeadConfig, lidar: LidarConfig, box_convention: Literal["mit", "mmdet3d"]
    ) -> None:
        super().__init__()
        self.config = head
        self.box_convention = box_convention
        self.grid = BevGrid.build(lidar.point_cloud_range, lidar.voxel_size, lidar.sparse_shape, head.out_size_factor)
        if len(head.code_weights) != CODE_SIZE:
            raise ModelError(f"head.code_weights has {len(head.code_weights)} numbers: the code has {CODE_SIZE}")
        if head.num_proposals > head.num_classes * math.prod(self.grid.shape):
            raise ModelError(
                f"head.num_proposals = {head.num_proposals}: a map of {head.num_classes} classes and "
                f"{self.grid.shape[0]}x{self.grid.shape[1]} cells does not hold as many"
            )
        channels, classes = head.hidden_channels, head.num_classes
        self.shared_conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.heatmap_head = nn.Sequential(
            ConvBlock(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)),
            nn.Conv2d(channels, classes, 3, padding=1),
        )
        self.class_encoding = nn.Conv1d(classes, channels, 1)
        self.decoder = nn.ModuleList([DecoderLayer(channels, head.num_heads, head.ffn_channels, head.dropout)])
        self.prediction_heads = nn.ModuleList([PredictionHeads(channels, classes)])
        self._initialise()

    def _initialise(self) -> None:
        """Xavier for the decoder; both classifiers start at a probability of 0.1, so that background does not swamp."""
        for parameter in self.decoder.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        for classifier in (self.heatmap_head[1], self.prediction_heads[0].get_submodule("heatmap.1")):
            assert isinstance(classifier, nn.Conv1d | nn.Conv2d)
            assert classifier.bias is not None
            nn.init.constant_(classifier.bias, -math.log(9))

    def forward(self, feature: Tensor) -> dict[str, Tensor]:
        """feature [B, in_channels, X, Y] to predictions of P proposals.

        center [B, 2, P] in cells, height [B, 1, P] m, dim [B, 3, P] log m, rot [B, 2, P] (sin, cos), vel [B, 2, P] m/s,
        heatmap [B, classes, P] logits, query_heatmap_score [B, classes, P] height of the peaks, dense_heatmap
        [B, classes, X, Y] logits, query_labels [B, P] int64. Raises ModelError if the map is not that of the grid.
        """
        if tuple(feature.shape[-2:]) != self.grid.shape:
            raise ModelError(
                f"detection head: the feature map is {feature.shape[-2]}x{feature.shape[-1]}, the grid of the "
                f"configuration is {self.grid.shape[0]}x{self.grid.shape[1]}; make lidar.sparse_shape fit the decoder"
            )
        shared = self.shared_conv(feature)
        dense_heatmap = self.heatmap_head(shared)
        peaks = self._local_maxima(dense_heatmap.detach().sigmoid()).flatten(2)
        labels, cells = self._top_proposals(peaks)

        memory = shared.flatten(2).transpose(1, 2)
        positions = self._cell_centres(feature).expand(len(feature), -1, -1)
        one_hot = nn.functional.one_hot(labels, self.config.num_classes).to(feature.dtype)
        query = _pick(memory, cells) + self.class_encoding(one_hot.transpose(1, 2)).transpose(1, 2)
        query_pos = _pick(positions, cells)

        query = self.decoder[0](query, memory, query_pos, positions)
        predictions: dict[str, Tensor] = self.prediction_heads[0](query.transpose(1, 2))
        predictions["center"] = predictions["center"] + query_pos.transpose(1, 2)
        predictions["query_heatmap_score"] = _pick(peaks.transpose(1, 2), cells).transpose(1, 2)
        predictions["dense_heatmap"] = dense_heatmap
        predictions["query_labels"] = labels
        return predictions

    def loss(self, predictions: dict[str, Tensor], boxes: list[Tensor], labels: list[Tensor]) -> dict[str, Tensor]:
        """Scalar losses of predictions against canonical boxes [G, 9] and labels [G] of each sample.

        loss_heatmap, loss_cls, loss_bbox are to be summed; matched_ious (mean 3D IoU of the matched proposals, averaged
        over samples) is a statistic without gradient. Boxes labelled -1 or outside the grid are ignored, unknown (NaN)
        velocities cost nothing, and a batch without boxes has finite losses.
        Raises DataError for boxes that cannot be used, ScoringError for predictions that are not finite.
        """
        targets = build_targets(
            {name: value.detach() for name, value in predictions.items()},
            boxes,
            labels,
            grid=self.grid,
            convention=self.box_convention,
            min_overlap=self.config.gaussian_overlap,
            min_radius=self.config.min_radius,
        )
        positives = targets.positives
        normaliser = max(int(positives.sum()), 1)
        logits = predictions["heatmap"].transpose(1, 2).flatten(0, 1)
        weights = targets.weights * targets.weights.new_tensor(self.config.code_weights)
        codes = join_codes(predictions)
        return {
            "loss_heatmap": gaussian_focal_loss(predictions["dense_heatmap"], targets.heatmap),
            "loss_cls": sigmoid_focal_loss(logits, targets.labels.flatten(), normaliser),
            "loss_bbox": BBOX_LOSS_WEIGHT * weighted_l1_loss(codes, targets.codes, weights, normaliser),
            "matched_ious": (targets.ious.sum(1) / positives.clamp(min=1)).mean(),
        }

    def decode(self, predictions: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Per sample: boxes canonical [K, 9], scores [K], labels [K] int64, best heatmap peak first."""
        return decode_predictions(
            predictions,
            grid=self.grid,
            convention=self.box_convention,
            post_center_range=self.config.post_center_range,
        )

    def _local_maxima(self, heat: Tensor) -> Tensor:
        """Heat [B, C, X, Y] where a cell is the largest of its window, else 0.

        Cells of the border have no full window and are no peaks, except for the small classes, whose window is a cell.
        """
        kernel = self.config.nms_kernel_size
        border = kernel // 2
        highest = nn.functional.max_pool2d(heat, kernel, stride=1)
        window_max = nn.functional.pad(highest, (border, border, border, border))
        for index in SMALL_CLASSES:
            window_max[:, index] = heat[:, index]
        return heat * (heat == window_max)

    def _top_proposals(self, peaks: Tensor) -> tuple[Tensor, Tensor]:
        """Class and cell [B, P] of the highest peaks [B, C, X*Y]; equal heights in the order of class, then cell."""
        order = peaks.flatten(1).sort(dim=1, descending=True, stable=True).indices[:, : self.config.num_proposals]
        return order // peaks.shape[2], order % peaks.shape[2]

    def _cell_centres(self, like: Tensor) -> Tensor:
        """[1, X*Y, 2], y running fastest."""
        axes = [torch.arange(size, dtype=like.dtype, device=like.device) + 0.5 for size in self.grid.shape]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)[None]


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """values [B, N, C] at index [B, P]: [B, P, C]."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
