"""View transform: camera features into a bird's-eye-view map, with depth hints from the LiDAR points.

Lift-splat-shoot (Philion and Fidler, ECCV 2020) in the depth-aware form of BEVFusion (Liu et al., ICRA 2023): the
points are projected into every image as a sparse depth map, which helps the network to place each pixel along its ray.

Geometry is float32 whatever the dtype of the model, as the voxels are: a float64 run then sees the same depth pixels
and cells as the float32 run that it is compared with, instead of moving what lies on an edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from fastalter.errors import ModelError
from fastalter.models.bev_pool import bev_pool
from fastalter.models.config import Bound, ViewTransformConfig

_NEAREST = 1e-5
"""Depth in metres below which a point counts as behind the camera."""


def _frozen(values: Tensor) -> nn.Parameter:
    """Geometry is stored among the parameters, as published checkpoints do, but is never trained."""
    return nn.Parameter(values, requires_grad=False)


def _grid_size(bound: Bound) -> int:
    lower, upper, step = bound
    return round((upper - lower) / step)


def make_frustum(image_size: tuple[int, int], feature_size: tuple[int, int], dbound: Bound) -> Tensor:
    """[D, h, w, 3]: pixel x, pixel y and depth (m) of each feature pixel at each depth bin, in the augmented image."""
    depths = torch.arange(*dbound)
    ys = torch.linspace(0, image_size[0] - 1, feature_size[0])
    xs = torch.linspace(0, image_size[1] - 1, feature_size[1])
    depth, y, x = torch.meshgrid(depths, ys, xs, indexing="ij")
    return torch.stack([x, y, depth], -1)


def _transform(points: Tensor, matrix: Tensor) -> Tensor:
    """Apply the homogeneous matrices [..., 4, 4] to points [..., P, 3]."""
    return points @ matrix[..., :3, :3].transpose(-1, -2) + matrix[..., None, :3, 3]


def _untransform(points: Tensor, matrix: Tensor) -> Tensor:
    """Undo the homogeneous matrices [..., 4, 4] on points [..., P, 3]."""
    return (points - matrix[..., None, :3, 3]) @ torch.inverse(matrix[..., :3, :3]).transpose(-1, -2)


@torch.no_grad()
def depth_image(
    points: Tensor, lidar2image: Tensor, image_aug: Tensor, lidar_aug: Tensor, image_size: tuple[int, int]
) -> Tensor:
    """Depth maps float32 [N, 1, H, W] of one sample: metres at the pixels that a LiDAR point falls on, 0 elsewhere.

    points: [P, >=3] in the augmented LiDAR frame, left as they are. lidar2image, image_aug: [N, 4, 4]. lidar_aug:
    [4, 4]. Where several points share a pixel the nearest is kept, which does not depend on their order.
    """
    height, width = image_size
    lidar2image, image_aug, lidar_aug = lidar2image.float(), image_aug.float(), lidar_aug.float()
    pixels = _transform(_untransform(points[:, :3].float(), lidar_aug), lidar2image)  # [N, P, 3], scaled by depth
    distance = pixels[..., 2]
    pixels = torch.cat([pixels[..., :2] / distance.clamp(min=_NEAREST).unsqueeze(-1), distance.unsqueeze(-1)], -1)
    x, y, _ = _transform(pixels, image_aug).unbind(-1)
    visible = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (distance > _NEAREST)
    camera, point = visible.nonzero(as_tuple=True)
    pixel = (camera * height + y[camera, point].long()) * width + x[camera, point].long()
    flat = distance.new_zeros(len(lidar2image) * height * width)
    flat.scatter_reduce_(0, pixel, distance[camera, point], "amin", include_self=False)
    return flat.view(-1, 1, height, width)


def _conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int = 1, bias: bool = True) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=bias)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]


class DepthLSS(nn.Module):
    """Depth-aware lift-splat-shoot.

    `dtransform` brings the depth maps to the feature stride, `depthnet` predicts from both a distribution over depth
    bins and a context feature per pixel, `bev_pool` sums their products into cells of the grid, `downsample` smooths
    the map and halves it. `dx`, `bx`, `nx` (step, centre of the first cell, number of cells along x, y, z) and
    `frustum` are the geometry; metres in the LiDAR frame.

    Raises ModelError for an image that is no multiple of the feature stride, a downsampling other than 1 or 2, or more
    than one cell in height.
    """

    nx: Tensor
    depth_stride = (4, 2)

    def __init__(
        self, config: ViewTransformConfig, in_channels: int, image_size: tuple[int, int], feature_stride: int
    ) -> None:
        super().__init__()
        height, width = image_size
        if height % feature_stride or width % feature_stride:
            raise ModelError(f"image size {height}x{width} is no multiple of the feature stride {feature_stride}")
        if feature_stride != self.depth_stride[0] * self.depth_stride[1]:
            raise ModelError(f"the depth transform has stride 8; it cannot meet features of stride {feature_stride}")
        if config.downsample not in (1, 2):
            raise ModelError(f"view_transform.downsample is {config.downsample}; it must be 1 or 2")
        bounds = (config.xbound, config.ybound, config.zbound)
        cells = [_grid_size(bound) for bound in bounds]
        if cells[2] != 1:
            raise ModelError(f"view_transform.zbound makes {cells[2]} cells; make its step the whole height, for one")
        self.image_size = image_size
        self.grid = (cells[0], cells[1])

        self.dx = _frozen(torch.tensor([step for _, _, step in bounds]))
        self.bx = _frozen(torch.tensor([lower + step / 2 for lower, _, step in bounds]))
        self.nx = _frozen(torch.tensor(cells))
        feature_size = (height // feature_stride, width // feature_stride)
        self.frustum = _frozen(make_frustum(image_size, feature_size, config.dbound))
        self.depth_bins = self.frustum.shape[0]

        a, b, c = config.depth_channels
        first, second = self.depth_stride
        self.dtransform = nn.Sequential(*_conv_norm(1, a, 1), *_conv_norm(a, b, 5, first), *_conv_norm(b, c, 5, second))
        self.depthnet = nn.Sequential(
            *_conv_norm(c + in_channels, in_channels, 3),
            *_conv_norm(in_channels, in_channels, 3),
            nn.Conv2d(in_channels, self.depth_bins + config.out_channels, 1),
        )
        out = config.out_channels
        smooth = [m for stride in (1, 2, 1) for m in _conv_norm(out, out, 3, stride, bias=False)]
        self.downsample = nn.Sequential(*smooth) if config.downsample == 2 else nn.Identity()
        self.out_grid = tuple(-(-size // config.downsample) for size in self.grid)

    @property
    def out_channels(self) -> int:
        """Channels of the context features, and of the map."""
        return cast(nn.Conv2d, self.depthnet[-1]).out_channels - self.depth_bins

    def forward(
        self,
        features: Tensor,
        points: Sequence[Tensor],
        lidar2image: Tensor,
        camera2lidar: Tensor,
        intrinsics: Tensor,
        image_aug: Tensor,
        lidar_aug: Tensor,
    ) -> Tensor:
        """Features [B, N, C, h, w], points B x [P_i, >=3], matrices as in a `Batch` -> BEV map [B, out, X, Y]."""
        depth = torch.stack(
            [
                depth_image(*sample, self.image_size)
                for sample in zip(points, lidar2image, image_aug, lidar_aug, strict=True)
            ]
        )
        logits, context = self._predict(features, depth.to(features.dtype))
        cells = self.cells(self.geometry(camera2lidar, intrinsics, image_aug, lidar_aug))
        bev = torch.stack([self._splat(*sample) for sample in zip(logits.softmax(2), context, cells, strict=True)])
        out: Tensor = self.downsample(bev)
        return out

    def _predict(self, features: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        """Depth logits [B, N, D, h, w] and context features [B, N, out, h, w]."""
        batch, cameras = features.shape[:2]
        hints = self.dtransform(depth.flatten(0, 1))
        x = self.depthnet(torch.cat([hints, features.flatten(0, 1)], 1))
        logits, context = x.unflatten(0, (batch, cameras)).tensor_split([self.depth_bins], 2)
        return logits, context

    @torch.no_grad()
    def geometry(self, camera2lidar: Tensor, intrinsics: Tensor, image_aug: Tensor, lidar_aug: Tensor) -> Tensor:
        """float32 [B, N, D, h, w, 3]: where each frustum point lies, in the augmented LiDAR frame (m)."""
        camera2lidar, intrinsics = camera2lidar.float(), intrinsics.float()
        points = _untransform(self.frustum.float().view(-1, 3), image_aug.float())  # [B, N, D*h*w, 3]
        rays = torch.cat([points[..., :2] * points[..., 2:], points[..., 2:]], -1)
        to_lidar = camera2lidar[..., :3, :3] @ torch.inverse(intrinsics[..., :3, :3])
        points = rays @ to_lidar.transpose(-1, -2) + camera2lidar[..., None, :3, 3]
        points = _transform(points.flatten(1, 2), lidar_aug.float())
        return points.view(*camera2lidar.shape[:2], *self.frustum.shape)

    @torch.no_grad()
    def cells(self, geometry: Tensor) -> Tensor:
        """Flat cell index x * Y + y, int64 [B, N, D, h, w], of frustum points; X * Y for those outside the grid.

        Truncation is toward zero, so up to one cell below the lower bound counts as the first cell, as upstream has it.
        """
        first_centre, step = self.bx.float(), self.dx.float()
        index = ((geometry - (first_centre - step / 2)) / step).long()
        inside = ((index >= 0) & (index < self.nx)).all(-1)
        size_x, size_y = self.grid
        return torch.where(inside, index[..., 0] * size_y + index[..., 1], size_x * size_y)

    def _splat(self, depth: Tensor, context: Tensor, cells: Tensor) -> Tensor:
        """One sample: [N, D, h, w], [N, C, h, w], [N, D, h, w] -> [C, X, Y]."""
        size_x, size_y = self.grid
        depth, context, cells = (x.movedim(1, -1).flatten(0, 2) for x in (depth, context, cells))  # one row a pixel
        return bev_pool(depth, context, cells, size_x * size_y).T.reshape(-1, size_x, size_y)
