"""MIT's sparse LiDAR encoder on spconv 2: occupied voxels to a dense bird's-eye-view map.

Module names give the keys of the published checkpoint; weights have spconv 2's shape [out, k0, k1, k2, in].
Axes are x, y, z throughout: coords (sample, x, y, z), maps [B, C, X, Y].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastalter.errors import BackendError, ModelError
from fastalter.models.config import LidarConfig
from fastalter.models.spconv_border import ConvAlgo, spconv

SparseTensor = Any
"""spconv.SparseConvTensor: features [M, C] with int32 indices [M, 4]. The library carries no types."""

STRIDE_PADDINGS: tuple[tuple[int, int, int], ...] = ((1, 1, 1), (1, 1, 1), (1, 1, 0))
"""Padding of the strided convolution that closes stage 1, 2, 3; the last does not pad z, so 11 layers become 5."""


class SiteBatchNorm(nn.BatchNorm1d):
    """Batch norm over occupied sites [M, C]; a single site has no variance, so it is normalised as in eval mode."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3, momentum=0.01)

    def forward(self, features: Tensor) -> Tensor:
        if self.training and len(features) < 2:
            return nn.functional.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(features)


class SparseBasicBlock(nn.Module):
    """Residual block of two submanifold convolutions: occupied sites stay what they are."""

    def __init__(self, channels: int, rulebook: str) -> None:
        super().__init__()
        self.conv1 = spconv.SubMConv3d(channels, channels, 3, padding=1, bias=False, indice_key=rulebook)
        self.bn1 = SiteBatchNorm(channels)
        self.conv2 = spconv.SubMConv3d(channels, channels, 3, padding=1, bias=False, indice_key=rulebook)
        self.bn2 = SiteBatchNorm(channels)
        self.relu = nn.ReLU()

    def forward(self, x: SparseTensor) -> SparseTensor:
        out = self.conv1(x)
        out = out.replace_feature(self.relu(self.bn1(out.features)))
        out = self.conv2(out)
        return out.replace_feature(self.relu(self.bn2(out.features) + x.features))


class SparseSequential(nn.Sequential):
    """Runs sparse modules on the sparse tensor and all others (norms, activations) on its features."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        for module in self:
            if isinstance(module, (spconv.SparseModule, SparseBasicBlock, SparseSequential)):
                x = module(x)
            else:
                x = x.replace_feature(module(x.features))
        return x


def _conv_norm_relu(conv: nn.Module, channels: int) -> SparseSequential:
    return SparseSequential(conv, SiteBatchNorm(channels), nn.ReLU())


def _stage(index: int, in_channels: int, channels: tuple[int, ...], last: bool) -> tuple[SparseSequential, int]:
    """One stage: a residual block per width, except that the last entry of all but the last stage halves the grid."""
    layers: list[nn.Module] = []
    blocks = channels if last else channels[:-1]
    for width in blocks:
        if width != in_channels:
            raise ModelError(
                f"lidar.encoder_channels[{index}] = {channels}: a residual block keeps its width, but gets "
                f"{in_channels} channels where {width} is written; make them equal"
            )
        layers.append(SparseBasicBlock(width, rulebook=f"stage{index + 1}"))
    if last:
        return SparseSequential(*layers), in_channels
    out = channels[-1]
    conv = spconv.SparseConv3d(in_channels, out, 3, stride=2, padding=STRIDE_PADDINGS[index], bias=False)
    return SparseSequential(*layers, _conv_norm_relu(conv, out)), out


def _fold_depth(x: SparseTensor) -> Tensor:
    """Dense map [B, C*D, X, Y], channel c*D + d, zero where nothing is occupied."""
    dense: Tensor = x.features.new_zeros(x.batch_size, *x.spatial_shape, x.features.shape[1])
    dense.index_put_(x.indices.long().unbind(1), x.features)
    batch, size_x, size_y, depth, channels = dense.shape
    return dense.permute(0, 4, 3, 1, 2).reshape(batch, channels * depth, size_x, size_y)


class SparseEncoder(nn.Module):
    """Four stages of sparse convolutions; grid X, Y, Z -> X/8, Y/8 with the remaining z layers folded into channels.

    float32 on CPU and CUDA, float64 on the CPU (spconv has no float64 kernels for CUDA: BackendError). On the CPU two
    runs with the same number of threads are bitwise equal.
    """

    def __init__(self, lidar: LidarConfig) -> None:
        super().__init__()
        if len(lidar.encoder_channels) != len(STRIDE_PADDINGS) + 1:
            raise ModelError(
                f"lidar.encoder_channels has {len(lidar.encoder_channels)} stages: the sparse encoder has "
                f"{len(STRIDE_PADDINGS) + 1}"
            )
        self.sparse_shape = list(lidar.sparse_shape)
        width = lidar.encoder_channels[0][0]
        # The first convolution and the blocks of stage 1 see the same sites, hence one rulebook.
        self.conv_input = _conv_norm_relu(
            spconv.SubMConv3d(lidar.in_channels, width, 3, padding=1, bias=False, indice_key="stage1"), width
        )
        self.encoder_layers = nn.Module()
        for index, channels in enumerate(lidar.encoder_channels):
            last = index == len(STRIDE_PADDINGS)
            stage, width = _stage(index, width, channels, last)
            self.encoder_layers.add_module(f"encoder_layer{index + 1}", stage)
        self.conv_out = _conv_norm_relu(
            spconv.SparseConv3d(width, lidar.output_channels, (1, 1, 3), stride=(1, 1, 2), bias=False),
            lidar.output_channels,
        )

    @property
    def output_channels(self) -> int:
        """Channels C of every layer in height."""
        last: Any = self.conv_out[0]
        return int(last.out_channels)

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Grid (X, Y, D) of the output."""
        shape = self.sparse_shape
        for padding in STRIDE_PADDINGS:
            shape = [(size + 2 * pad - 3) // 2 + 1 for size, pad in zip(shape, padding, strict=True)]
        return shape[0], shape[1], (shape[2] - 3) // 2 + 1

    def forward(self, voxel_features: Tensor, coords: Tensor, batch_size: int) -> Tensor:
        """voxel_features [M, in_channels], coords [M, 4] int32 (sample, x, y, z) without repetition.

        Returns [B, C*D, X, Y], channel index c*D + d. Without any voxel the map is zero and every gradient is zero.
        """
        self._choose_algorithm(voxel_features)
        if not len(voxel_features):
            return self._empty(voxel_features, batch_size)
        x = spconv.SparseConvTensor(voxel_features, coords.contiguous(), self.sparse_shape, batch_size)
        x = self.conv_input(x)
        for stage in self.encoder_layers.children():
            x = stage(x)
        return _fold_depth(self.conv_out(x))

    def _choose_algorithm(self, features: Tensor) -> None:
        """spconv wants the algorithm named: Native is the one for the CPU, and slow on CUDA."""
        if features.is_cuda and features.dtype == torch.float64:
            raise BackendError("sparse encoder: spconv has no float64 kernels for CUDA; use float32, or run on the CPU")
        algorithm = ConvAlgo.MaskImplicitGemm if features.is_cuda else ConvAlgo.Native
        for module in self.modules():
            if isinstance(module, (spconv.SubMConv3d, spconv.SparseConv3d)):
                module.algo = algorithm

    def _empty(self, features: Tensor, batch_size: int) -> Tensor:
        size_x, size_y, depth = self.out_shape
        zeros = features.new_zeros(batch_size, self.output_channels * depth, size_x, size_y)
        # Tied to the parameters, so that backward works as for any other batch.
        return zeros + 0 * sum(parameter.sum() for parameter in self.parameters())
