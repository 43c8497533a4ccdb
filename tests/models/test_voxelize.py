"""Voxelisation: the recorded upstream kernel, and a plain loop as the specification."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastalter.errors import DataError
from fastalter.models.config import LidarConfig
from fastalter.models.voxelize import Voxelization, hard_voxelize, point_cells
from tests.ground_truth import load_fixture, needs_ground_truth

RANGE = (-4.0, -4.0, -1.0, 4.0, 4.0, 1.0)
STEP = (1.0, 0.5, 1.0)


def by_the_book(points, max_points, max_voxels):
    """One point at a time, as the upstream kernel does it."""
    cells, inside = point_cells(points, STEP, RANGE)
    voxels: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for point, cell, valid in zip(points, cells.tolist(), inside.tolist(), strict=True):
        if not valid or (tuple(cell) not in voxels and len(voxels) == max_voxels):
            continue
        voxel = voxels.setdefault(tuple(cell), [])
        if len(voxel) < max_points:
            voxel.append(point)
    return voxels


@needs_ground_truth
@pytest.mark.parametrize("case", ["a", "b"])
def test_equals_the_upstream_kernel(case):
    fixture = load_fixture("mit_voxelize")
    settings = fixture.metadata["settings"][case]
    expected = fixture.group(case)
    points = fixture.inputs()["points"]
    cells, inside = point_cells(points, settings["voxel_size"], settings["range"])
    assert torch.equal(inside, (expected["dynamic_coords"] >= 0).all(1))
    assert torch.equal(cells[inside].int(), expected["dynamic_coords"][inside])

    voxels, coords, counts = hard_voxelize(
        points, settings["voxel_size"], settings["range"], settings["max_points"], settings["max_voxels"]
    )
    assert torch.equal(coords, expected["coords"])
    assert torch.equal(counts.int(), expected["num"])
    assert torch.equal(voxels.sum(1) / counts[:, None], expected["mean"])
    if "voxels" in expected:
        assert torch.equal(voxels, expected["voxels"])


@pytest.mark.parametrize(("max_points", "max_voxels"), [(3, 20), (1, 1000), (50, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_a_loop_over_points(max_points, max_voxels, dtype):
    points = torch.from_numpy(np.random.default_rng(0).uniform(-5, 5, (400, 5))).to(dtype)
    voxels, coords, counts = hard_voxelize(points, STEP, RANGE, max_points, max_voxels)
    expected = by_the_book(points, max_points, max_voxels)
    assert [tuple(c) for c in coords.tolist()] == list(expected)
    assert counts.tolist() == [len(v) for v in expected.values()]
    for voxel, members in zip(voxels, expected.values(), strict=True):
        assert torch.equal(voxel[: len(members)], torch.stack(members))
        assert not voxel[len(members) :].any()
    assert voxels.dtype == dtype
    assert coords.dtype == torch.int32


def test_both_edges_of_the_range():
    xs = [-4.0, -4.000001, 3.999999, 4.0]
    points = torch.tensor([[x, 0.0, 0.0] for x in xs])
    cells, inside = point_cells(points, STEP, RANGE)
    assert inside.tolist() == [True, False, True, False]
    assert cells[2, 0] == 7


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("column", [0, 3, 4])
def test_points_that_are_not_finite_are_dropped(bad, column):
    points = torch.zeros(2, 5)
    points[1, column] = bad
    _, coords, counts = hard_voxelize(points, STEP, RANGE, 10, 10)
    assert coords.tolist() == [[4, 8, 1]]
    assert counts.tolist() == [1]


def test_float64_points_fall_into_the_float32_cells():
    """x / 0.1 rounds differently in the two precisions for some of these; the voxels must not."""
    points = torch.zeros(2000, 3)
    points[:, 0] = torch.arange(2000) * 0.1 - 100
    arguments = (0.1, 0.1, 0.1), (-100.0, -1.0, -1.0, 100.0, 1.0, 1.0)
    assert torch.equal(point_cells(points, *arguments)[0], point_cells(points.double(), *arguments)[0])
    in_float64 = torch.floor((points[:, 0].double() + 100) / 0.1)
    assert not torch.equal(in_float64.long(), point_cells(points, *arguments)[0][:, 0])


def test_module_numbers_samples_and_keeps_its_input():
    lidar = LidarConfig(voxel_size=STEP, point_cloud_range=RANGE, max_voxels=(7, 9))
    scans = [torch.randn(60, 5), torch.empty(0, 5), torch.randn(60, 5)]
    before = [scan.clone() for scan in scans]
    module = Voxelization(lidar)
    assert not module.state_dict()
    features, coords, batch_size = module.train()(scans)
    assert batch_size == 3
    assert coords[:, 0].tolist() == [0] * 7 + [2] * 7
    assert features.shape == (14, 5)
    assert coords.dtype == torch.int32
    assert len(module.eval()(scans)[0]) == 18
    assert all(torch.equal(a, b) for a, b in zip(scans, before, strict=True))


def test_no_points_give_no_voxels():
    features, coords, batch_size = Voxelization(LidarConfig())([torch.empty(0, 5), torch.full((4, 5), torch.nan)])
    assert features.shape == (0, 5)
    assert coords.shape == (0, 4)
    assert batch_size == 2


def test_wrong_columns_are_named():
    with pytest.raises(DataError, match=r"sample 1 have shape \(3, 4\): expected \[P, 5\]"):
        Voxelization(LidarConfig())([torch.zeros(3, 5), torch.zeros(3, 4)])
