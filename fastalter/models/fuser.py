"""Fusion of the camera and LiDAR bird's-eye-view maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ConvFuser(nn.Sequential):
    """3x3 convolution over the concatenated maps, batch norm, ReLU.

    Maps [B, C_m, X, Y] in the order of the branches (camera, LiDAR) become one [B, out_channels, X, Y]. The convolution
    has no bias and its input channels are the branches' in order, so it splits into one convolution per branch.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(sum(in_channels), out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = torch.cat(list(features), 1)
        for module in self:
            x = module(x)
        return x
