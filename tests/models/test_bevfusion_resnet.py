"""BEVFusion with a ResNet for the cameras: the whole model trains, is masked, scored, saved and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastalter
from fastalter.checkpoint import load_checkpoint, save_checkpoint
from fastalter.data import Batch, example_batch
from fastalter.models import build, config_of
from tests.checkpoint.files import in_layout
from tests.models.test_bevfusion import OUTLETS, loss_and_gradients, outline, zero_branch

TINY = config_of("bevfusion-tiny-resnet")


@pytest.fixture(scope="module")
def batch() -> Batch:
    return example_batch(TINY, batch_size=2, seed=5)


def test_tiny_has_the_parts_of_the_full_model_and_a_million_parameters() -> None:
    tiny, full = build(TINY), build("bevfusion-mit-resnet101-voxelnet")
    stages = {name: kind for name, kind in outline(full).items() if name in outline(tiny)}
    assert outline(tiny) == stages
    assert 0.9e6 < sum(p.numel() for p in tiny.parameters() if p.requires_grad) < 1.1e6


def test_every_weight_gets_a_finite_gradient_bit_for_bit_the_same(batch: Batch) -> None:
    runs = [loss_and_gradients(build(TINY), batch)[1] for _ in range(2)]
    for name, gradient in runs[0].items():
        assert gradient is not None, name
        assert torch.isfinite(gradient).all(), name
        assert gradient.ndim < 2 or gradient.any(), name
        other = runs[1][name]
        assert other is not None
        assert torch.equal(gradient, other), name


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_zeroing_the_camera_branch_makes_its_outlet_exactly_zero(batch: Batch, training: bool) -> None:
    model = build(TINY).train(training)
    assert OUTLETS["camera"](model, batch).any()
    zero_branch(model, "camera")
    assert not OUTLETS["camera"](model, batch).any()


@pytest.mark.parametrize("carried", [True, False], ids=["with its configuration", "weights alone"])
def test_a_saved_model_is_built_again_from_its_file(tmp_path: Path, carried: bool) -> None:
    model = build(TINY, seed=3)
    path = tmp_path / "model.pth"
    if carried:
        save_checkpoint(path, model)
    else:
        torch.save(in_layout(model.state_dict(), "mit", "spconv1"), path)
    loaded = load_checkpoint(path)
    assert loaded.config == TINY
    state = loaded.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_shared_scores_equal_direct_ones_in_float64() -> None:
    model = build(TINY).double()
    batches = list(fastalter.data.load("synthetic", config=TINY, batches=2, batch_size=1))
    shared, direct = (
        fastalter.score_model(model, batches, reactivation=fastalter.Reactivation(2, 1e-5), direct=flag, progress=False)
        for flag in (False, True)
    )
    for branch in direct.layout.branches:
        peak = float(direct.branch(branch).abs().max())
        assert peak > 0
        assert float((shared.branch(branch) - direct.branch(branch)).abs().max()) <= 1e-9 * peak, branch
