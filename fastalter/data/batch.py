"""The one batch type: what every loader makes and every in-tree model takes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

CLASS_NAMES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
"""Class order of the detection heads; labels index into it, whatever order a data file uses."""


@dataclass
class Batch:
    """B samples with N cameras each. Frames: LiDAR at the sample's time stamp, after the LiDAR augmentation.

    images            [B, N, 3, H, W] float, ImageNet-normalised RGB, after the image augmentation
    points            B tensors [P_i, 5] float: x, y, z (m), intensity (0-255), time lag (s, 0 for the key sweep)
    lidar2image       [B, N, 4, 4] unaugmented LiDAR frame -> pixels of the original image (homogeneous, depth-scaled)
    camera2lidar      [B, N, 4, 4] camera frame -> unaugmented LiDAR frame
    intrinsics        [B, N, 4, 4] pinhole matrix of the original image, padded to 4x4
    image_aug         [B, N, 4, 4] original pixels -> pixels of `images` (scale, crop, flip, rotation)
    lidar_aug         [B, 4, 4] unaugmented LiDAR frame -> the frame of `points` and `boxes`
    boxes             B tensors [G_i, 9], canonical convention of `fastalter.data.boxes`
    labels            B tensors [G_i] int64, indices into `CLASS_NAMES`; -1 is an object no class claims
    tokens            B names, one per sample (sample token or frame name, plus the view)

    All matrices multiply column vectors. lidar2image @ (x, y, z, 1) = (u d, v d, d, 1) with depth d in metres along the
    optical axis; after the division by d, image_aug @ (u, v, d, 1) = (u', v', d, 1): its translation is in the last
    column and it leaves the depth alone. Pixels are continuous, (0, 0) is the outer corner of the first pixel. The
    camera frame is x right, y down, z forward. lidar2image = intrinsics @ inv(camera2lidar), and both
    hold the ego motion between the LiDAR's and the camera's time stamps. A point p of `points` is lidar_aug @ (x, y,
    z, 1) of the scan, so its pixel is found through lidar2image @ inv(lidar_aug) @ p.
    """

    images: Tensor
    points: list[Tensor]
    lidar2image: Tensor
    camera2lidar: Tensor
    intrinsics: Tensor
    image_aug: Tensor
    lidar_aug: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]
    tokens: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Batch:
        """The same batch on another device, floating tensors in another dtype; integers keep theirs."""

        def move(value: object) -> object:
            if isinstance(value, Tensor):
                return value.to(device, dtype if value.is_floating_point() else None)
            if isinstance(value, list):
                return [move(item) for item in value]
            return value

        return Batch(**{f.name: move(getattr(self, f.name)) for f in fields(self)})  # type: ignore[arg-type]
