"""ResNet, the convolutional image backbone (He et al., CVPR 2016), of torchvision's bottleneck blocks.

The stride sits in the 3x3 convolution, as in mmdetection's "pytorch" style and in torchvision; so do the module names,
which are those of published files.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from fastalter.models.config import ResNetConfig


class ResNet(nn.Module):
    """Images [B, 3, H, W] to one map [B, C_i, H / 2^(i + 2), W / 2^(i + 2)] per stage i of `config.out_indices`.

    C_i is `config.channels`, sizes are rounded up. Stages above the last one that is asked for are not built.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        base = config.base_channels
        self.out_indices = config.out_indices
        self.conv1 = nn.Conv2d(3, base, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = [f"layer{i + 1}" for i in range(max(config.out_indices) + 1)]
        channels = base
        for i, name in enumerate(self.stages):
            width = base * 2**i
            self.add_module(name, _stage(channels, width, config.layers[i], stride=1 if i == 0 else 2))
            channels = width * Bottleneck.expansion
        self._initialise()

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        outputs = []
        for i, name in enumerate(self.stages):
            x = self.get_submodule(name)(x)
            if i in self.out_indices:
                outputs.append(x)
        return outputs

    def _initialise(self) -> None:
        """He et al.'s normal distribution, by the fan out; norms start at one and zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _stage(in_channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    """The first block changes size and channels, its shortcut with it."""
    out_channels = width * Bottleneck.expansion
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
        shortcut = nn.Sequential(conv, nn.BatchNorm2d(out_channels))
    first = Bottleneck(in_channels, width, stride, shortcut)
    return nn.Sequential(first, *(Bottleneck(out_channels, width) for _ in range(blocks - 1)))
