"""Losses of the TransFusion head: sums over all elements divided by a count that the caller gives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def sigmoid_focal_loss(
    logits: Tensor, labels: Tensor, normaliser: float, gamma: float = 2.0, alpha: float = 0.25
) -> Tensor:
    """Focal loss of logits [N, C] with labels [N] int64; label C means background (no class). Scalar."""
    target = functional.one_hot(labels, logits.shape[1] + 1)[:, :-1].to(logits.dtype)
    probability = logits.sigmoid()
    wrongness = (1 - probability) * target + probability * (1 - target)
    weight = (alpha * target + (1 - alpha) * (1 - target)) * wrongness**gamma
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (entropy * weight).sum() / normaliser


def gaussian_focal_loss(logits: Tensor, heatmap: Tensor) -> Tensor:
    """CenterNet's penalty-reduced focal loss of dense logits against Gaussian peaks, same shape. Scalar.

    Divided by the number of cells that are exactly 1 (at least 1). Probabilities are clamped to [1e-4, 1 - 1e-4].
    """
    epsilon = 1e-12
    probability = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    peak = heatmap == 1
    positive = -(probability + epsilon).log() * (1 - probability) ** 2 * peak
    negative = -(1 - probability + epsilon).log() * probability**2 * (1 - heatmap) ** 4
    return (positive + negative).sum() / max(int(peak.sum()), 1)


def weighted_l1_loss(codes: Tensor, target: Tensor, weights: Tensor, normaliser: float) -> Tensor:
    """sum(weights * |codes - target|) / normaliser over tensors of one shape. The target must be finite. Scalar."""
    return (torch.abs(codes - target) * weights).sum() / normaliser
