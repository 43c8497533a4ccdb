"""One configuration of BEVFusion-mit, from full size down to the tiny model: same classes, other numbers.

Defaults are the published camera+LiDAR detection model (Swin-T, voxel 0.075 m). Lengths in metres, images in pixels
(H, W).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Bound = tuple[float, float, float]
"""(lower, upper, step) of a regular grid."""


@dataclass(frozen=True)
class SwinConfig:
    embed_dims: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: int = 4
    out_indices: tuple[int, ...] = (1, 2, 3)
    drop_path_rate: float = 0.2


@dataclass(frozen=True)
class ViewTransformConfig:
    """Depth-aware lift-splat-shoot."""

    out_channels: int = 80
    xbound: Bound = (-54.0, 54.0, 0.3)
    ybound: Bound = (-54.0, 54.0, 0.3)
    zbound: Bound = (-10.0, 10.0, 20.0)
    dbound: Bound = (1.0, 60.0, 0.5)
    downsample: int = 2
    depth_channels: tuple[int, int, int] = (8, 32, 64)


@dataclass(frozen=True)
class CameraConfig:
    backbone: SwinConfig = field(default_factory=SwinConfig)
    neck_channels: int = 256
    view_transform: ViewTransformConfig = field(default_factory=ViewTransformConfig)
    image_size: tuple[int, int] = (256, 704)
    feature_stride: int = 8


@dataclass(frozen=True)
class LidarConfig:
    in_channels: int = 5
    voxel_size: tuple[float, float, float] = (0.075, 0.075, 0.2)
    point_cloud_range: tuple[float, ...] = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
    sparse_shape: tuple[int, int, int] = (1440, 1440, 41)
    max_points: int = 10
    max_voxels: tuple[int, int] = (120000, 160000)
    encoder_channels: tuple[tuple[int, ...], ...] = ((16, 16, 32), (32, 32, 64), (64, 64, 128), (128, 128))
    output_channels: int = 128


@dataclass(frozen=True)
class DecoderConfig:
    """SECOND and its feature pyramid."""

    channels: tuple[int, ...] = (128, 256)
    layers: tuple[int, ...] = (5, 5)
    strides: tuple[int, ...] = (1, 2)
    neck_channels: tuple[int, ...] = (256, 256)
    upsample_strides: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class HeadConfig:
    """TransFusion head, its targets and its losses."""

    num_classes: int = 10
    num_proposals: int = 200
    hidden_channels: int = 128
    num_heads: int = 8
    ffn_channels: int = 256
    out_size_factor: int = 8
    gaussian_overlap: float = 0.1
    min_radius: int = 2
    code_weights: tuple[float, ...] = (1.0,) * 8 + (0.2, 0.2)
    dropout: float = 0.1
    nms_kernel_size: int = 3
    post_center_range: tuple[float, ...] = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)


@dataclass(frozen=True)
class BEVFusionConfig:
    """`box_convention` is that of the checkpoint's head; batches are canonical and the head converts."""

    name: str = "bevfusion-mit-swint-voxelnet"
    camera: CameraConfig = field(default_factory=CameraConfig)
    lidar: LidarConfig = field(default_factory=LidarConfig)
    fuser_channels: int = 256
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    box_convention: Literal["mit", "mmdet3d"] = "mit"

    def with_image_size(self, height: int, width: int) -> BEVFusionConfig:
        """The same weights on images of another size (only the frustum changes)."""
        return replace(self, camera=replace(self.camera, image_size=(height, width)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready form, the inverse of `from_dict`."""
        return asdict(self)
