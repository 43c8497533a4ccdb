"""BEVFusion of Liu et al. (ICRA 2023, mit-han-lab): a camera and a LiDAR branch meet in one bird's-eye-view map.

The module tree and the state dict are those of the published checkpoints, except that sparse convolutions keep spconv
2's weight layout [out, k0, k1, k2, in].
"""

from __future__ import annotations

from typing import ClassVar, cast

from torch import Tensor, nn

from fastalter.data.batch import Batch
from fastalter.errors import ModelError
from fastalter.models.config import BEVFusionConfig, CameraConfig, LidarConfig
from fastalter.models.decoder import SECOND, SECONDFPN
from fastalter.models.fuser import ConvFuser
from fastalter.models.neck import LSSFPN
from fastalter.models.sparse_encoder import SparseEncoder
from fastalter.models.swin import SwinTransformer
from fastalter.models.transfusion_head import TransFusionHead
from fastalter.models.view_transform import DepthLSS
from fastalter.models.voxelize import Voxelization


def _camera_branch(config: CameraConfig) -> tuple[nn.ModuleDict, DepthLSS]:
    """The branch and its outlet."""
    swin = config.backbone
    backbone = SwinTransformer(swin)
    neck = LSSFPN([swin.embed_dims * 2**i for i in swin.out_indices], config.neck_channels)
    vtransform = DepthLSS(config.view_transform, config.neck_channels, config.image_size, config.feature_stride)
    return nn.ModuleDict({"backbone": backbone, "neck": neck, "vtransform": vtransform}), vtransform


def _lidar_branch(config: LidarConfig) -> tuple[nn.ModuleDict, SparseEncoder]:
    """The branch and its outlet."""
    encoder = SparseEncoder(config)
    return nn.ModuleDict({"voxelize": Voxelization(config), "backbone": encoder}), encoder


class BEVFusion(nn.Module):
    """Detection from cameras and LiDAR.

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
        camera, vtransform = _camera_branch(config.camera)
        lidar, encoder = _lidar_branch(config.lidar)
        *lidar_grid, layers = encoder.out_shape
        if list(vtransform.out_grid) != lidar_grid:
            raise ModelError(
                f"{config.name}: the camera map has {list(vtransform.out_grid)} cells, the LiDAR map {lidar_grid}; "
                "make camera.view_transform's bounds fit lidar.sparse_shape"
            )
        self.encoders = nn.ModuleDict({"camera": camera, "lidar": lidar})
        self.fuser = ConvFuser((vtransform.out_channels, encoder.output_channels * layers), config.fuser_channels)
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
        fused = self.fuser([self.camera_map(batch), self.lidar_map(batch)])
        predictions: dict[str, Tensor] = self.head(self.decoder["neck"](self.decoder["backbone"](fused)))
        return predictions

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses under keys with "loss" in them; what else is there is a statistic without gradient.

        Works alike in train and eval mode, with samples that have no boxes, labels of -1 and unknown velocities.
        """
        return self.head.loss(self(batch), batch.boxes, batch.labels)

    def camera_map(self, batch: Batch) -> Tensor:
        """The camera branch's map [B, C, X, Y]."""
        camera = cast(nn.ModuleDict, self.encoders["camera"])
        features = camera["neck"](camera["backbone"](batch.images.flatten(0, 1)))[0]
        bev: Tensor = camera["vtransform"](
            features.unflatten(0, batch.images.shape[:2]),
            batch.points,
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
