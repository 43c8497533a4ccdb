"""BEVFusion of Liu et al. (ICRA 2023, mit-han-lab): a camera and a LiDAR branch meet in one bird's-eye-view map.

The module tree and the state dict are those of the published checkpoints, except that sparse convolutions keep spconv
2's weight layout [out, k0, k1, k2, in].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, nn

from fastalter.data.batch import Batch
from fastalter.errors import ModelError
from fastalter.models.config import BEVFusionConfig, SwinConfig
from fastalter.models.decoder import SECOND, SECONDFPN
from fastalter.models.fuser import ConvFuser
from fastalter.models.neck import LSSFPN
from fastalter.models.resnet import ResNet
from fastalter.models.sparse_encoder import SparseEncoder
from fastalter.models.swin import SwinTransformer
from fastalter.models.transfusion_head import TransFusionHead
from fastalter.models.view_transform import DepthLSS
from fastalter.models.voxelize import Voxelization


@dataclass(frozen=True)
class Branch:
    """One sensor's modules, the channels of its map and the map's cells along x and y."""

    modules: nn.ModuleDict
    channels: int
    grid: tuple[int, ...]


def _camera_branch(config: BEVFusionConfig) -> Branch:
    camera = config.camera
    trunk = camera.backbone
    backbone = SwinTransformer(trunk) if isinstance(trunk, SwinConfig) else ResNet(trunk)
    neck = LSSFPN(trunk.channels, camera.neck_channels)
    vtransform = DepthLSS(camera.view_transform, camera.neck_channels, camera.image_size, camera.feature_stride)
    modules = nn.ModuleDict({"backbone": backbone, "neck": neck, "vtransform": vtransform})
    return Branch(modules, vtransform.out_channels, vtransform.out_grid)


def _lidar_branch(config: BEVFusionConfig) -> Branch:
    encoder = SparseEncoder(config.lidar)
    *grid, layers = encoder.out_shape
    modules = nn.ModuleDict({"voxelize": Voxelization(config.lidar), "backbone": encoder})
    return Branch(modules, encoder.output_channels * layers, tuple(grid))


SENSORS = {"camera": _camera_branch, "lidar": _lidar_branch}
"""How each sensor's branch is built; a new sensor is one more line here and a `<sensor>_map` method below."""


def _branches(config: BEVFusionConfig) -> dict[str, Branch]:
    """The branches of a configuration; ModelError for a sensor that is not known or maps that do not meet."""
    if not config.sensors or (unknown := [sensor for sensor in config.sensors if sensor not in SENSORS]):
        what = f"no branch for sensor {unknown[0]!r}" if config.sensors else "no sensors"
        raise ModelError(f"{config.name}: {what}; config.sensors takes {', '.join(SENSORS)}")
    branches = {sensor: SENSORS[sensor](config) for sensor in config.sensors}
    if len({branch.grid for branch in branches.values()}) != 1:
        cells = ", ".join(f"the {sensor} map has {list(branch.grid)} cells" for sensor, branch in branches.items())
        raise ModelError(f"{config.name}: {cells}; make camera.view_transform's bounds fit lidar.sparse_shape")
    return branches


class BEVFusion(nn.Module):
    """Detection from cameras and LiDAR, or from one of them (`config.sensors`).

    `branches` names the modules of each sensor's branch, `outlets` the module where its feature [B, C, X, Y] leaves,
    `concat_conv` the convolution that takes the outlets' features concatenated in this order; the rest is fusion.

    Raises ModelError when the two branches do not end on the same grid.
    """

    branches: ClassVar[dict[str, list[str]]] = {
        "camera": ["encoders.camera.backbone", "encoders.camera.neck", "encoders.camera.vtransform"],
        "lidar": ["encoders.lidar.voxelize", "encoders.lidar.backbone"],
    }
    outlets: ClassVar[dict[str, str]] = {"camera": "encoders.camera.vtransform", "lidar": "encoders.lidar.backbone"}
    concat_conv = "fuser.0"

    def __init__(self, config: BEVFusionConfig) -> None:
        super().__init__()
        self.config = config
        branches = _branches(config)
        self.encoders = nn.ModuleDict({sensor: branch.modules for sensor, branch in branches.items()})
        self.fuser = ConvFuser([branch.channels for branch in branches.values()], config.fuser_channels)
        backbone, neck = SECOND(config.fuser_channels, config.decoder), SECONDFPN(config.decoder)
        self.decoder = nn.ModuleDict({"backbone": backbone, "neck": neck})
        in_channels = sum(config.decoder.neck_channels)
        head = TransFusionHead(in_channels, config.head, config.lidar, config.box_convention)
        self.heads = nn.ModuleDict({"object": head})

    @property
    def head(self) -> TransFusionHead:
        """The detection head, which also computes the losses and decodes boxes."""
        return cast(TransFusionHead, self.heads["object"])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The head's raw predictions; `head.decode` makes boxes of them."""
        maps = {"camera": self.camera_map, "lidar": self.lidar_map}
        fused = self.fuser([maps[sensor](batch) for sensor in self.config.sensors])
        predictions: dict[str, Tensor] = self.head(self.decoder["neck"](self.decoder["backbone"](fused)))
        return predictions

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses under keys with "loss" in them; what else is there is a statistic without gradient.

        Works alike in train and eval mode, with samples that have no boxes, labels of -1 and unknown velocities.
        """
        return self.head.loss(self(batch), batch.boxes, batch.labels)

    def camera_map(self, batch: Batch) -> Tensor:
        """The camera branch's map [B, C, X, Y]. Without a LiDAR among the sensors its points give no depth hints."""
        hints = batch.points if "lidar" in self.config.sensors else [points[:0] for points in batch.points]
        camera = cast(nn.ModuleDict, self.encoders["camera"])
        features = camera["neck"](camera["backbone"](batch.images.flatten(0, 1)))[0]
        bev: Tensor = camera["vtransform"](
            features.unflatten(0, batch.images.shape[:2]),
            hints,
            batch.lidar2image,
            batch.camera2lidar,
            batch.intrinsics,
            batch.image_aug,
            batch.lidar_aug,
        )
        return bev

    def lidar_map(self, batch: Batch) -> Tensor:
        """The LiDAR branch's map [B, C, X, Y], the layers in height folded into channels."""
        lidar = cast(nn.ModuleDict, self.encoders["lidar"])
        voxels, coords, batch_size = lidar["voxelize"](batch.points)
        bev: Tensor = lidar["backbone"](voxels, coords, batch_size)
        return bev
