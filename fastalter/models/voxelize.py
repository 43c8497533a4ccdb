"""Hard voxelisation: points of a scan to the mean of each occupied cell, without a loop over points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastalter.errors import DataError
from fastalter.models.config import LidarConfig


def point_cells(
    points: Tensor, voxel_size: Sequence[float], point_cloud_range: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Cell of each point and whether it lies in the grid.

    points [P, >=3] of any float dtype, x, y, z first. Returns cells [P, 3] int64 (x, y, z order; zero outside the grid)
    and inside [P] bool. Points with a NaN or an infinity in any column are outside.

    The division is done in float32 whatever the dtype of the points: a float64 run then sees the same voxels as the
    float32 run that it is compared with.
    """
    lower = torch.tensor(point_cloud_range[:3], dtype=torch.float32, device=points.device)
    upper = torch.tensor(point_cloud_range[3:6], dtype=torch.float32, device=points.device)
    step = torch.tensor(voxel_size, dtype=torch.float32, device=points.device)
    grid = torch.round((upper - lower) / step)
    position = torch.floor((points[:, :3].float() - lower) / step)
    inside = ((position >= 0) & (position < grid)).all(1) & torch.isfinite(points).all(1)
    return torch.where(inside[:, None], position, 0).long(), inside


def hard_voxelize(
    points: Tensor,
    voxel_size: Sequence[float],
    point_cloud_range: Sequence[float],
    max_points: int,
    max_voxels: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Group the points of one scan by cell.

    points [P, C]. Returns voxels [M, max_points, C] (padded with zeros), coords [M, 3] int32 in x, y, z order and
    counts [M] int64. Voxels come in the order of their first point, points inside a voxel in the order of the scan;
    points beyond `max_points` of a voxel and voxels beyond `max_voxels` are dropped, so both caps keep what came first.
    """
    cells, inside = point_cells(points, voxel_size, point_cloud_range)
    cells, points = cells[inside], points[inside]
    if not len(points):
        return points.new_zeros(0, max_points, points.shape[1]), cells.int(), cells.new_zeros(0)

    # Sorting by cell makes each voxel a run; the sort is stable, so a run keeps the order of the scan.
    extent = cells.amax(0) + 1
    key = (cells[:, 0] * extent[1] + cells[:, 1]) * extent[2] + cells[:, 2]
    key, order = torch.sort(key, stable=True)
    run_starts = torch.ones_like(key, dtype=torch.bool)
    run_starts[1:] = key[1:] != key[:-1]
    start = run_starts.nonzero()[:, 0]
    run = run_starts.cumsum(0) - 1
    rank = torch.arange(len(key), device=key.device) - start[run]

    # Number the voxels by their first point instead of by cell.
    first_point = order[start]
    by_appearance = torch.argsort(first_point)
    slot = torch.empty_like(by_appearance)
    slot[by_appearance] = torch.arange(len(slot), device=slot.device)

    kept = (rank < max_points) & (slot[run] < max_voxels)
    order, run, rank = order[kept], run[kept], rank[kept]
    count = min(len(slot), max_voxels)
    voxels = points.new_zeros(count, max_points, points.shape[1])
    voxels[slot[run], rank] = points[order]
    counts = torch.bincount(slot[run], minlength=count)
    return voxels, cells[first_point[by_appearance[:count]]].int(), counts


class Voxelization(nn.Module):
    """Scans to voxels: the mean of the points of each occupied cell. It has no parameters.

    In train mode the first of `max_voxels` caps the voxels of a sample, in eval mode the second, as upstream.
    """

    def __init__(self, lidar: LidarConfig) -> None:
        super().__init__()
        self.lidar = lidar

    @torch.no_grad()
    def forward(self, points: list[Tensor]) -> tuple[Tensor, Tensor, int]:
        """points: B tensors [P_i, in_channels], left untouched, in metres for x, y, z.

        Returns features [M, in_channels] in the dtype of the points, coords [M, 4] int32 (sample, x, y, z) and B.
        Raises DataError if a scan does not have `in_channels` columns.
        """
        lidar = self.lidar
        max_voxels = lidar.max_voxels[0] if self.training else lidar.max_voxels[1]
        features, coords = [], []
        for sample, scan in enumerate(points):
            if scan.ndim != 2 or scan.shape[1] != lidar.in_channels:
                raise DataError(
                    f"points of sample {sample} have shape {tuple(scan.shape)}: expected [P, {lidar.in_channels}] "
                    "(x, y, z, intensity, time lag); fix the loader or the model's lidar.in_channels"
                )
            voxels, cells, counts = hard_voxelize(
                scan, lidar.voxel_size, lidar.point_cloud_range, lidar.max_points, max_voxels
            )
            features.append(voxels.sum(1) / counts[:, None])
            coords.append(nn.functional.pad(cells, (1, 0), value=sample))
        return torch.cat(features), torch.cat(coords), len(points)
