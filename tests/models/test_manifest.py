"""The full-size models' state dicts against the committed manifests of upstream's: keys, shapes, counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastalter.models
from fastalter.models.bevfusion import BEVFusion
from tests.ground_truth import SPCONV1_TO_SPCONV2

MANIFESTS = Path(__file__).parents[1] / "manifests"
MODELS = {
    "bevfusion-mit-swint-voxelnet": "mit_bevfusion_det_swint_v0p075.json",
    "bevfusion-mit-resnet101-voxelnet": "mit_bevfusion_det_resnet101_second_v0p1.json",
}
GRIDS = {
    "bevfusion-mit-swint-voxelnet": (0.3, -53.85, 360),
    "bevfusion-mit-resnet101-voxelnet": (0.4, -51.0, 256),
}
"""Of the view transform: metres of a cell, the first centre, cells along an axis."""
Entry = dict[str, Any]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> BEVFusion:
    return fastalter.models.build(request.param)


@pytest.fixture
def manifest(model: BEVFusion) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((MANIFESTS / MODELS[model.config.name]).read_text())
    return content


def spconv2_shape(entry: Entry) -> list[int]:
    """The manifest has sparse convolutions in spconv 1's layout; they are the five-dimensional ones."""
    shape: list[int] = entry["shape"]
    return [shape[i] for i in SPCONV1_TO_SPCONV2] if len(shape) == 5 else shape


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def branch_of(key: str, model: BEVFusion) -> str:
    for branch, modules in model.branches.items():
        if any(key.startswith(f"{module}.") for module in modules):
            return branch
    return "fusion" if key.startswith("fuser.") else "other"


def test_keys_and_their_order(model: BEVFusion, manifest: dict[str, Any]) -> None:
    assert list(model.state_dict()) == list(manifest["tensors"])


def test_shapes_dtypes_kinds_and_what_is_trained(model: BEVFusion, manifest: dict[str, Any]) -> None:
    tensors = tensors_of(model)
    parameters = dict(model.named_parameters())
    for key, entry in manifest["tensors"].items():
        tensor = tensors[key]
        assert list(tensor.shape) == spconv2_shape(entry), key
        assert str(tensor.dtype) == f"torch.{entry['dtype']}", key
        assert ("parameter" if key in parameters else "buffer") == entry["kind"], key
        assert tensor.requires_grad == entry["trainable"], key
        assert branch_of(key, model) == entry["branch"], key


def test_parameter_counts_per_branch(model: BEVFusion, manifest: dict[str, Any]) -> None:
    counts = {branch: {"trainable_params": 0, "frozen_params": 0} for branch in ("camera", "lidar", "fusion", "other")}
    for key, parameter in model.named_parameters():
        kind = "trainable_params" if parameter.requires_grad else "frozen_params"
        counts[branch_of(key, model)][kind] += parameter.numel()
    for branch, count in counts.items():
        assert count == {kind: manifest["totals"][branch][kind] for kind in count}, branch


def test_quarter_resolution_takes_the_same_weights(model: BEVFusion, manifest: dict[str, Any]) -> None:
    quarter = fastalter.models.build(model.config.at_quarter_resolution())
    frustum = "encoders.camera.vtransform.frustum"
    for key, tensor in quarter.state_dict().items():
        if key != frustum:
            assert list(tensor.shape) == spconv2_shape(manifest["tensors"][key]), key
    assert list(quarter.get_parameter(frustum).shape) == [118, 16, 44, 3]
    cells = GRIDS[model.config.name][2] // 2
    assert quarter.get_parameter("encoders.camera.vtransform.nx").tolist() == [cells, cells, 1]


def test_geometry_parameters_hold_the_published_grid(model: BEVFusion) -> None:
    vtransform = model.get_submodule("encoders.camera.vtransform")
    cell, first, cells = GRIDS[model.config.name]
    torch.testing.assert_close(vtransform.get_parameter("dx"), torch.tensor([cell, cell, 20.0]))
    torch.testing.assert_close(vtransform.get_parameter("bx"), torch.tensor([first, first, 0.0]))
    assert vtransform.get_parameter("nx").tolist() == [cells, cells, 1]
    frustum = vtransform.get_parameter("frustum")
    assert frustum[0, 0, 0].tolist() == [0.0, 0.0, 1.0]
    assert frustum[-1, -1, -1].tolist() == [703.0, 255.0, 59.5]
