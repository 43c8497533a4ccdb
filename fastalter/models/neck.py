"""Image neck: the feature pyramid of lift-splat-shoot (Philion and Fidler, ECCV 2020), for any number of levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNorm(nn.Module):
    """Convolution without bias that keeps the size, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class LSSFPN(nn.Module):
    """Top-down pyramid that concatenates: level i = fpn_i(lateral_i(cat[x_i, upsampled level i+1])).

    Maps [B, C_i, H_i, W_i], finest first, become one map of `out_channels` per level but the coarsest, at the sizes of
    the inputs. BEVFusion uses only the first.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        below = [out_channels] * (len(in_channels) - 2) + [in_channels[-1]]
        widths = [own + coarser for own, coarser in zip(in_channels[:-1], below, strict=True)]
        self.lateral_convs = nn.ModuleList(ConvNorm(width, out_channels, 1) for width in widths)
        self.fpn_convs = nn.ModuleList(ConvNorm(out_channels, out_channels, 3) for _ in widths)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        *finer, coarser = features
        outputs: list[Tensor] = []
        for feature, lateral, fpn in reversed(list(zip(finer, self.lateral_convs, self.fpn_convs, strict=True))):
            upsampled = F.interpolate(coarser, size=feature.shape[2:], mode="bilinear", align_corners=False)
            coarser = fpn(lateral(torch.cat([feature, upsampled], 1)))
            outputs.insert(0, coarser)
        return outputs
