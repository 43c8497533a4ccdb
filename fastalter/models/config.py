"""One configuration of BEVFusion-mit, from full size down to the tiny model: same classes, other numbers.

Defaults are the published camera+LiDAR detection model (Swin-T, voxel 0.075 m). Lengths in metres, images in pixels
(H, W).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from fastalter.errors import ModelError

T = TypeVar("T")
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

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the output maps."""
        return tuple(self.embed_dims * 2**i for i in self.out_indices)


@dataclass(frozen=True)
class ResNetConfig:
    """`layers` counts the bottleneck blocks of each stage; the default is ResNet-101."""

    layers: tuple[int, ...] = (3, 4, 23, 3)
    base_channels: int = 64
    out_indices: tuple[int, ...] = (1, 2, 3)

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the output maps."""
        return tuple(4 * self.base_channels * 2**i for i in self.out_indices)


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
    backbone: SwinConfig | ResNetConfig = field(default_factory=SwinConfig)
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
    """`box_convention` is that of the checkpoint's head; batches are canonical and the head converts. `sensors` says
    which branches there are, in this order: one alone makes a single-sensor detector, the parent of a fusion model.
    """

    name: str = "bevfusion-mit-swint-voxelnet"
    sensors: tuple[str, ...] = ("camera", "lidar")
    camera: CameraConfig = field(default_factory=CameraConfig)
    lidar: LidarConfig = field(default_factory=LidarConfig)
    fuser_channels: int = 256
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    box_convention: Literal["mit", "mmdet3d"] = "mit"

    def with_sensors(self, *sensors: str) -> BEVFusionConfig:
        """The same model with these sensors' branches only, such as "lidar"; another name, and other fuser weights."""
        return replace(self, sensors=sensors, name=f"{self.name}-{'-'.join(sensors)}")

    def with_image_size(self, height: int, width: int) -> BEVFusionConfig:
        """The same weights on images of another size (only the frustum changes)."""
        return replace(self, camera=replace(self.camera, image_size=(height, width)))

    def at_quarter_resolution(self) -> BEVFusionConfig:
        """The same weights on a quarter of the pixels and map cells: images half as high and wide, cells twice as wide.

        At full size: images 128x352, voxels of 0.15 m, a map of 90x90. Only the geometry parameters change.
        """
        grid, lidar = self.camera.view_transform, self.lidar
        (x0, x1, dx), (y0, y1, dy) = grid.xbound, grid.ybound
        coarse_grid = replace(grid, xbound=(x0, x1, 2 * dx), ybound=(y0, y1, 2 * dy))
        height, width = self.camera.image_size
        (vx, vy, vz), (nx, ny, nz) = lidar.voxel_size, lidar.sparse_shape
        return replace(
            self,
            camera=replace(self.camera, view_transform=coarse_grid, image_size=(height // 2, width // 2)),
            lidar=replace(lidar, voxel_size=(2 * vx, 2 * vy, vz), sparse_shape=(nx // 2, ny // 2, nz)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain form of dictionaries, tuples, numbers and strings, ready for JSON; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BEVFusionConfig:
        """The configuration that `to_dict` wrote, also after a round through JSON. Missing entries take their defaults.

        Raises ModelError for an entry that no configuration has, or a section that is not a dictionary.
        """
        return _from_mapping(cls, values, "config")


def _from_mapping(cls: type[T], values: Mapping[str, Any], path: str) -> T:
    if not isinstance(values, Mapping):
        raise ModelError(f"{path} is {type(values).__name__}, not a dictionary of {cls.__name__} entries")
    hints = get_type_hints(cls)
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise ModelError(f"{path} has no entry {unknown[0]!r}; it knows {', '.join(sorted(known))}")
    return cls(**{name: _convert(hints[name], value, f"{path}.{name}") for name, value in values.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
    if sections := [choice for choice in (get_args(hint) or (hint,)) if is_dataclass(choice)]:
        return _from_mapping(_fitting(sections, value), value, path)
    return _tuples(value) if isinstance(value, (list, tuple)) else value


def _fitting(sections: list[Any], value: Any) -> Any:
    """Of several kinds of section, the first that has all entries of `value`; else the first, which will complain."""
    entries = set(value) if isinstance(value, Mapping) else set()
    return next((kind for kind in sections if entries <= {f.name for f in fields(kind)}), sections[0])


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def resnet101_config() -> BEVFusionConfig:
    """ResNet-101 for the cameras, voxels of 0.1 m within 51.2 m: the network that AlterMOMA prunes by channels."""
    reach, voxel = 51.2, 0.1
    bound = (-reach, reach, 4 * voxel)
    return BEVFusionConfig(
        name="bevfusion-mit-resnet101-voxelnet",
        camera=CameraConfig(backbone=ResNetConfig(), view_transform=ViewTransformConfig(xbound=bound, ybound=bound)),
        lidar=LidarConfig(
            voxel_size=(voxel, voxel, 0.2),
            point_cloud_range=(-reach, -reach, -5.0, reach, reach, 3.0),
            sparse_shape=(1024, 1024, 41),
            max_voxels=(90000, 120000),
        ),
    )


def tiny_config() -> BEVFusionConfig:
    """About a million parameters: the classes and module tree of the full model, narrow, on +-24 m and small images.

    No dropout and no stochastic depth: it is too small and trained too briefly to overfit.
    """
    reach, voxel = 24.0, 0.2
    cells = round(2 * reach / voxel)
    bound = (-reach, reach, 4 * voxel)
    return BEVFusionConfig(
        name="bevfusion-tiny",
        camera=CameraConfig(
            backbone=SwinConfig(embed_dims=16, num_heads=(1, 2, 4, 8), drop_path_rate=0.0),
            neck_channels=32,
            view_transform=ViewTransformConfig(
                out_channels=16, xbound=bound, ybound=bound, dbound=(1.0, 35.0, 1.0), depth_channels=(4, 8, 16)
            ),
            image_size=(64, 176),
        ),
        lidar=LidarConfig(
            voxel_size=(voxel, voxel, 0.2),
            point_cloud_range=(-reach, -reach, -5.0, reach, reach, 3.0),
            sparse_shape=(cells, cells, 41),
            max_voxels=(30000, 40000),
            encoder_channels=((4, 4, 8), (8, 8, 16), (16, 16, 32), (32, 32)),
            output_channels=16,
        ),
        fuser_channels=32,
        decoder=DecoderConfig(channels=(16, 32), neck_channels=(32, 32)),
        head=HeadConfig(
            num_proposals=60,
            hidden_channels=32,
            ffn_channels=64,
            dropout=0.0,
            post_center_range=(-1.2 * reach, -1.2 * reach, -10.0, 1.2 * reach, 1.2 * reach, 10.0),
        ),
    )


def tiny_resnet_config() -> BEVFusionConfig:
    """`tiny_config` with a narrow ResNet of five blocks for the cameras."""
    tiny = tiny_config()
    backbone = ResNetConfig(layers=(1, 1, 2, 1), base_channels=16)
    return replace(tiny, name="bevfusion-tiny-resnet", camera=replace(tiny.camera, backbone=backbone))
