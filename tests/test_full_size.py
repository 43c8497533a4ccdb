"""The full-size network, slow: a checkpoint in the published layout, loaded and scored in both forms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastalter
from fastalter import data, models
from fastalter.checkpoint import load_checkpoint, save_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_a_full_size_checkpoint_is_scored_alike_in_both_forms(tmp_path: Path) -> None:
    """At a quarter of the resolution, in float64: 1e-9 of each branch's maximum.

    Random weights propose boxes far from the true ones, all on one side of some: without the assigner's rule for ties
    rounding decides matches, and the forms part by 3e-3.
    """
    config = models.config_of("bevfusion-mit-swint-voxelnet").at_quarter_resolution()
    save_checkpoint(tmp_path / "full.pth", models.build(config), sparse="spconv1")
    loaded = load_checkpoint(tmp_path / "full.pth")
    assert loaded.layout == "mit"
    model = loaded.model.double()
    batches = list(data.load("synthetic", config=loaded.config, batches=2, batch_size=1))
    runs = [
        fastalter.score_model(
            model,
            batches,
            reactivation=fastalter.Reactivation(2, 1e-5),
            reri_data="paper",
            direct=direct,
            progress=False,
        )
        for direct in (False, True)
    ]
    shared, direct = runs
    for branch in shared.layout.branches:
        peak = float(direct.branch(branch).abs().max())
        worst = float((shared.branch(branch) - direct.branch(branch)).abs().max())
        assert worst <= 1e-9 * peak, f"{branch}: off by {worst / peak:.1e} of the maximum"
    mask = shared.mask(0.8)
    assert mask.kept_total == round(0.2 * shared.layout.size)
    assert shared.layout.size == sum(p["prunable"] for p in shared.metadata["branches"].values())
    assert shared.flat.dtype == torch.float64
