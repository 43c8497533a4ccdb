"""The regression code of the TransFusion head, and the bird's-eye-view grid it counts in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CODE_SIZE = 10
"""[cell x, cell y, z of the centre, log of three sizes, sin yaw, cos yaw, vx, vy]"""


@dataclass(frozen=True)
class BevGrid:
    """Cells of the head's map: `lower` corner and `upper` corner in metres, `cell` in metres, `shape` (X, Y)."""

    lower: tuple[float, float]
    upper: tuple[float, float]
    cell: tuple[float, float]
    shape: tuple[int, int]

    @classmethod
    def build(
        cls,
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        sparse_shape: Sequence[int],
        out_size_factor: int,
    ) -> BevGrid:
        """The grid of a map that is `out_size_factor` times coarser than the voxels."""
        return cls(
            lower=(point_cloud_range[0], point_cloud_range[1]),
            upper=(point_cloud_range[3], point_cloud_range[4]),
            cell=(voxel_size[0] * out_size_factor, voxel_size[1] * out_size_factor),
            shape=(sparse_shape[0] // out_size_factor, sparse_shape[1] // out_size_factor),
        )

    def to_cells(self, xy: Tensor) -> Tensor:
        """Metres [..., 2] to fractional cells; the centre of cell i is i + 0.5."""
        return (xy - xy.new_tensor(self.lower)) / xy.new_tensor(self.cell)

    def to_metres(self, cells: Tensor) -> Tensor:
        """The inverse of `to_cells`."""
        return cells * cells.new_tensor(self.cell) + cells.new_tensor(self.lower)

    def contains(self, xy: Tensor) -> Tensor:
        """Which of xy [..., 2], in metres, lie inside the range. The border does not, as in upstream's range filter."""
        return ((xy > xy.new_tensor(self.lower)) & (xy < xy.new_tensor(self.upper))).all(-1)


def encode_boxes(boxes: Tensor, grid: BevGrid) -> Tensor:
    """Boxes [..., 9] with z at the bottom, in the head's own convention, to codes [..., 10]. NaN velocity stays NaN."""
    height = boxes[..., 5:6]
    yaw = boxes[..., 6:7]
    return torch.cat(
        [
            grid.to_cells(boxes[..., :2]),
            boxes[..., 2:3] + height / 2,
            boxes[..., 3:6].log(),
            yaw.sin(),
            yaw.cos(),
            boxes[..., 7:9],
        ],
        -1,
    )


def decode_boxes(codes: Tensor, grid: BevGrid) -> Tensor:
    """Codes [..., 10] to boxes [..., 9] with z at the bottom, yaw in (-pi, pi]: the inverse of `encode_boxes`."""
    size = codes[..., 3:6].exp()
    bottom = codes[..., 2:3] - size[..., 2:3] / 2
    yaw = torch.atan2(codes[..., 6:7], codes[..., 7:8])
    return torch.cat([grid.to_metres(codes[..., :2]), bottom, size, yaw, codes[..., 8:10]], -1)


def join_codes(predictions: dict[str, Tensor]) -> Tensor:
    """The regression outputs of the head, [B, k, P] each, as codes [B, P, 10]."""
    parts = [predictions[name] for name in ("center", "height", "dim", "rot", "vel")]
    return torch.cat(parts, 1).transpose(1, 2)
