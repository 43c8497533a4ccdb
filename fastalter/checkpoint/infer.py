"""Read the configuration of BEVFusion-mit off a state dict: keys, shapes, and the view transform's constants.

What weights do not tell comes from a configuration that agrees with them in everything they do tell: the one the file
carries, else a registered one, else the published model's. These are the fields of `hidden`: the name, the number of
proposals and attention heads, dropout and drop path, code weights, the settings of the heatmap and of the decoding, the
z range of the voxels and the voxel limits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal

from torch import Tensor

from fastalter.errors import CheckpointError
from fastalter.models.config import (
    BEVFusionConfig,
    Bound,
    CameraConfig,
    DecoderConfig,
    HeadConfig,
    LidarConfig,
    ResNetConfig,
    SwinConfig,
    ViewTransformConfig,
)

CAMERA, LIDAR, HEAD = "encoders.camera.", "encoders.lidar.backbone.", "heads.object."
BACKBONE, VIEW = f"{CAMERA}backbone.", f"{CAMERA}vtransform."
MAX_CELLS = 2048
"""Cells along one axis of a BEV grid (published: up to 512); the head keeps a position per cell."""
INFERRED_NAME = "bevfusion-mit (inferred)"


def infer_config(
    state: Mapping[str, Tensor],
    box_convention: Literal["mit", "mmdet3d"] = "mit",
    carried: BEVFusionConfig | None = None,
    known: Iterable[BEVFusionConfig] = (),
) -> BEVFusionConfig:
    """The configuration of a state dict with the model's keys and sparse layout (see `layouts.to_model`).

    `carried` is the one the file brings along, `known` are those to try in order; each only fills in what weights do
    not tell. Values of geometry tensors are read; of the others only shapes are, so they may be on the meta device.

    Raises:
        CheckpointError: a tensor that the answer needs is missing or of another rank, or `carried` contradicts it.
    """
    visible = _Reader(state).config(box_convention)
    candidates = list(known) if carried is None else [carried]
    for candidate in candidates:
        # Neither the image size nor the box convention makes another model.
        wanted = candidate.with_image_size(*visible.camera.image_size)
        filled = hidden(visible, candidate)
        if filled == replace(wanted, box_convention=box_convention):
            return filled
    if carried is not None:
        raise CheckpointError("the configuration it carries is not that of its weights: save it again")
    return replace(visible, name=INFERRED_NAME)


def hidden(visible: BEVFusionConfig, source: BEVFusionConfig) -> BEVFusionConfig:
    """`visible` with everything that weights do not tell taken from `source`."""
    z = source.lidar.point_cloud_range
    x_y = visible.lidar.point_cloud_range
    lidar = replace(
        visible.lidar,
        voxel_size=(*visible.lidar.voxel_size[:2], source.lidar.voxel_size[2]),
        point_cloud_range=(*x_y[:2], z[2], *x_y[3:5], z[5]),
        sparse_shape=(*visible.lidar.sparse_shape[:2], source.lidar.sparse_shape[2]),
        max_points=source.lidar.max_points,
        max_voxels=source.lidar.max_voxels,
    )
    told = ("num_classes", "hidden_channels", "ffn_channels", "out_size_factor")
    head = replace(source.head, **{name: getattr(visible.head, name) for name in told})
    backbone, other = visible.camera.backbone, source.camera.backbone
    if isinstance(backbone, SwinConfig) and isinstance(other, SwinConfig):
        backbone = replace(backbone, drop_path_rate=other.drop_path_rate)
    camera = replace(visible.camera, backbone=backbone)
    return replace(visible, name=source.name, camera=camera, lidar=lidar, head=head)


def _clean(value: float) -> float:
    """A float32 back to the decimal it was written as: 0.30000001 -> 0.3."""
    return float(f"{value:.6g}") + 0.0


class _Reader:
    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state

    def tensor(self, key: str, rank: int) -> Tensor:
        found = self.state.get(key)
        if found is None:
            raise CheckpointError(f"{key} is missing, which the published model has: give a complete checkpoint")
        if found.dim() != rank or not found.numel():
            raise CheckpointError(f"{key} {list(found.shape)} should have {rank} dimensions: give the published file")
        return found

    def size(self, key: str, axis: int, rank: int) -> int:
        return self.tensor(key, rank).shape[axis]

    def count(self, prefix: str, first: int = 0) -> int:
        """How many of the sub-modules prefix{first}, prefix{first+1}, ... there are."""
        pattern = re.compile(re.escape(prefix) + r"(\d{1,4})\.")
        present = {int(match[1]) for key in self.state if (match := pattern.match(key))}
        number = first
        while number in present:
            number += 1
        return number - first

    def config(self, box_convention: Literal["mit", "mmdet3d"]) -> BEVFusionConfig:
        camera = self.camera()
        return BEVFusionConfig(
            camera=camera,
            lidar=self.lidar(camera.view_transform),
            fuser_channels=self.size("fuser.0.weight", 0, 4),
            decoder=self.decoder(),
            head=self.head(),
            box_convention=box_convention,
        )

    def camera(self) -> CameraConfig:
        neck = self.size(f"{CAMERA}neck.lateral_convs.0.conv.weight", 0, 4)
        frustum = self.tensor(f"{VIEW}frustum", 4)
        height, width = (round(float(frustum[0, -1, -1, i])) + 1 for i in (1, 0))
        rows, columns = frustum.shape[1:3]
        stride = height // rows
        if not 0 < stride <= 64 or (height, width) != (rows * stride, columns * stride):
            raise CheckpointError(f"{VIEW}frustum speaks of {height}x{width} images in {rows}x{columns} cells: damaged")
        backbone = self.resnet() if f"{BACKBONE}layer1.0.conv1.weight" in self.state else self.swin()
        return CameraConfig(backbone, neck, self.view_transform(), (height, width), stride)

    def swin(self) -> SwinConfig:
        embed = self.size(f"{BACKBONE}patch_embed.projection.weight", 0, 4)
        stages = range(self.count(f"{BACKBONE}stages."))
        tables = [f"{BACKBONE}stages.{i}.blocks.0.attn.w_msa.relative_position_bias_table" for i in stages]
        window = (math.isqrt(self.size(tables[0], 0, 2)) + 1) // 2 if tables else 0
        hidden_size = self.size(f"{BACKBONE}stages.0.blocks.0.ffn.layers.0.0.weight", 0, 2)
        return SwinConfig(
            embed_dims=embed,
            depths=tuple(self.count(f"{BACKBONE}stages.{i}.blocks.") for i in stages),
            num_heads=tuple(self.size(table, 1, 2) for table in tables),
            window_size=window,
            mlp_ratio=hidden_size // embed,
            out_indices=tuple(i for i in stages if f"{BACKBONE}norm{i}.weight" in self.state),
        )

    def resnet(self) -> ResNetConfig:
        """The neck takes the maps of the last stages, one more than it has lateral convolutions."""
        stages = self.count(f"{BACKBONE}layer", first=1)
        self.tensor(f"{BACKBONE}layer1.0.conv3.weight", 4)  # what tells bottleneck blocks from basic ones
        levels = self.count(f"{CAMERA}neck.lateral_convs.") + 1
        return ResNetConfig(
            layers=tuple(self.count(f"{BACKBONE}layer{i + 1}.") for i in range(stages)),
            base_channels=self.size(f"{BACKBONE}conv1.weight", 0, 4),
            out_indices=tuple(range(stages))[-levels:],
        )

    def view_transform(self) -> ViewTransformConfig:
        """depthnet predicts the depth bins and the channels; the downsampling convolutions exist only at stride 2."""
        x, y, z = self.grid()
        first, second, third = (self.size(f"{VIEW}dtransform.{i}.weight", 0, 4) for i in (0, 3, 6))
        return ViewTransformConfig(
            out_channels=self.size(f"{VIEW}depthnet.6.weight", 0, 4) - self.size(f"{VIEW}frustum", 0, 4),
            xbound=x,
            ybound=y,
            zbound=z,
            dbound=self.depth_bound(),
            downsample=2 if self.count(f"{VIEW}downsample.") else 1,
            depth_channels=(first, second, third),
        )

    def depth_bound(self) -> Bound:
        depths = self.tensor(f"{VIEW}frustum", 4)[:, 0, 0, 2].double()
        lower, last = float(depths[0]), float(depths[-1])
        step = (last - lower) / (len(depths) - 1) if len(depths) > 1 else ViewTransformConfig().dbound[2]
        if not (math.isfinite(last) and step > 0):
            raise CheckpointError(f"{VIEW}frustum holds no ascending depths: the file is damaged, download it again")
        step = _clean(step)
        return _clean(lower), _clean(lower + len(depths) * step), step

    def grid(self) -> tuple[Bound, Bound, Bound]:
        """x, y and z bound: nx cells of dx whose first centre is bx."""
        dx, bx, nx = (self.tensor(f"{VIEW}{name}", 1).double().tolist() for name in ("dx", "bx", "nx"))
        if any(len(values) != 3 or not all(map(math.isfinite, values)) for values in (dx, bx, nx)):
            raise CheckpointError(
                f"{VIEW}dx, bx, nx are not three numbers each: the file is damaged, download it again"
            )
        if not all(step > 0 and 0 < cells <= MAX_CELLS for step, cells in zip(dx, nx, strict=True)):
            raise CheckpointError(f"{VIEW}dx, nx make no grid ({dx}, {nx}): the file is damaged, download it again")
        x, y, z = (
            (_clean(centre - step / 2), _clean(_clean(centre - step / 2) + cells * _clean(step)), _clean(step))
            for step, centre, cells in zip(dx, bx, nx, strict=True)
        )
        return x, y, z

    def lidar(self, view: ViewTransformConfig) -> LidarConfig:
        """Both branches end on one BEV grid, so the camera's gives the LiDAR's x and y, `reduction` voxels a cell."""
        default = LidarConfig()
        layers = f"{LIDAR}encoder_layers.encoder_layer"
        stages = self.count(layers, first=1)
        if not stages:
            raise CheckpointError(f"{layers}1 is missing, which the published model has: give a complete checkpoint")
        reduction = 2 ** (stages - 1)
        (x0, x1, dx), (y0, y1, dy) = view.xbound, view.ybound
        voxel = (_clean(dx * view.downsample / reduction), _clean(dy * view.downsample / reduction))
        shape = (round((x1 - x0) / voxel[0]), round((y1 - y0) / voxel[1]))
        z0, z1 = default.point_cloud_range[2], default.point_cloud_range[5]
        return replace(
            default,
            in_channels=self.size(f"{LIDAR}conv_input.0.weight", 4, 5),
            voxel_size=(*voxel, default.voxel_size[2]),
            point_cloud_range=(x0, y0, z0, x1, y1, z1),
            sparse_shape=(*shape, default.sparse_shape[2]),
            encoder_channels=tuple(self.stage(f"{layers}{i + 1}.") for i in range(stages)),
            output_channels=self.size(f"{LIDAR}conv_out.0.weight", 0, 5),
        )

    def stage(self, prefix: str) -> tuple[int, ...]:
        """Widths of the residual blocks and of the convolution that may close a stage."""
        widths = []
        for i in range(self.count(prefix)):
            block = f"{prefix}{i}.conv1.weight"
            widths.append(self.size(block if block in self.state else f"{prefix}{i}.0.weight", 0, 5))
        return tuple(widths)

    def decoder(self) -> DecoderConfig:
        """A deconvolution's kernel is its stride, and the pyramid's maps are of one size: so strides are its ratios."""
        blocks, necks = "decoder.backbone.blocks.", "decoder.neck.deblocks."
        stages = range(self.count(blocks))
        upsample = tuple(self.size(f"{necks}{i}.0.weight", 2, 4) for i in stages)
        return DecoderConfig(
            channels=tuple(self.size(f"{blocks}{i}.0.weight", 0, 4) for i in stages),
            layers=tuple(self.count_convs(f"{blocks}{i}.") - 1 for i in stages),
            strides=tuple(after // before for before, after in zip((1, *upsample), upsample, strict=False)),
            neck_channels=tuple(self.size(f"{necks}{i}.1.weight", 0, 1) for i in stages),
            upsample_strides=upsample,
        )

    def count_convs(self, prefix: str) -> int:
        """Convolutions of a sequence conv, norm, relu, conv, ..."""
        number = 0
        while f"{prefix}{3 * number}.weight" in self.state:
            number += 1
        return number

    def head(self) -> HeadConfig:
        return replace(
            HeadConfig(),
            num_classes=self.size(f"{HEAD}heatmap_head.1.weight", 0, 4),
            hidden_channels=self.size(f"{HEAD}shared_conv.weight", 0, 4),
            ffn_channels=self.size(f"{HEAD}decoder.0.linear1.weight", 0, 2),
            out_size_factor=2 ** (self.count(f"{LIDAR}encoder_layers.encoder_layer", first=1) - 1),
        )
