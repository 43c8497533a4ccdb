"""Bird's-eye-view decoder: SECOND's convolutional trunk and its feature pyramid (Yan et al., Sensors 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastalter.models.config import DecoderConfig


def _norm(channels: int) -> nn.BatchNorm2d:
    """The batch norm of the LiDAR side; the camera side keeps torch's defaults."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _conv_norm(in_channels: int, out_channels: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return [conv, _norm(out_channels), nn.ReLU()]


class SECOND(nn.Module):
    """[B, C, X, Y] -> one map per stage, each stage at its stride relative to the one before."""

    def __init__(self, in_channels: int, config: DecoderConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for out_channels, layers, stride in zip(config.channels, config.layers, config.strides, strict=True):
            modules = _conv_norm(in_channels, out_channels, stride)
            for _ in range(layers):
                modules += _conv_norm(out_channels, out_channels)
            self.blocks.append(nn.Sequential(*modules))
            in_channels = out_channels

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs


class SECONDFPN(nn.Module):
    """Bring every stage to one size and concatenate: maps of SECOND -> [B, sum of neck channels, X, Y].

    A stage that is there already goes through a 1x1 convolution, the others through a transposed one.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        widths = zip(config.channels, config.neck_channels, config.upsample_strides, strict=True)
        self.deblocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False)
                if stride == 1
                else nn.ConvTranspose2d(in_channels, out_channels, stride, stride=stride, bias=False),
                _norm(out_channels),
                nn.ReLU(),
            )
            for in_channels, out_channels, stride in widths
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return torch.cat([deblock(x) for deblock, x in zip(self.deblocks, features, strict=True)], 1)
