"""Scoring the in-tree model: real sparse convolutions, attention, Hungarian matching."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import fastalter
from fastalter import data, models
from fastalter.assets import EMBEDDED
from fastalter.checkpoint import load_checkpoint
from fastalter.fusion import adapt, find_weights

LR = fastalter.Reactivation().lr


@cache
def run(dtype: torch.dtype, direct: bool, lr: float = LR, reri_data: str = "paired", bn: str = "train") -> Any:
    model = load_checkpoint(EMBEDDED).model.to(dtype)
    batches = list(data.load("synthetic", config=model.config, batches=2, batch_size=1))
    return fastalter.score_model(
        model,
        batches,
        reactivation=fastalter.Reactivation(2, lr),
        reri_data=reri_data,  # type: ignore[arg-type]
        bn=bn,  # type: ignore[arg-type]
        direct=direct,
        progress=False,
    )


@pytest.mark.parametrize("bn", ["train", "frozen"])
def test_shared_equals_direct_in_float64(bn: str) -> None:
    shared, direct = (run(torch.float64, flag, bn=bn) for flag in (False, True))
    for branch in shared.layout.branches:
        peak = float(direct.branch(branch).abs().max())
        worst = float((shared.branch(branch) - direct.branch(branch)).abs().max())
        assert worst <= 1e-9 * peak, f"{branch}: off by {worst / peak:.1e} of the maximum"


def overlap(one: Any, other: Any) -> float:
    """Share of the kept weights that two runs have in common, at 80 %."""
    first, second = one.mask(0.8), other.mask(0.8)
    return sum(int((first[name] & second[name]).sum()) for name in first) / first.kept_total


@pytest.mark.parametrize("lr", [1e-5, 1e-3])
def test_shared_keeps_what_direct_keeps_in_float32(lr: float) -> None:
    """At rates between, one proposal of these batches tips by rounding, on some CPUs and thread counts (99.5 %)."""
    assert overlap(run(torch.float32, False, lr), run(torch.float32, True, lr)) >= 0.999


def test_zero_learning_rate_makes_reri_exactly_zero() -> None:
    """Rests on bitwise repeatable forward and backward passes, sparse convolutions included."""
    scores = run(torch.float32, False, 0.0)
    assert {value for sums in scores.metadata["sums"].values() for value in sums["reri"].values()} == {0.0}


def test_reactivation_stands_clear_of_rounding() -> None:
    """ReRI in float32 agrees with float64: it measures the reactivation, not noise."""
    single, double = run(torch.float32, False), run(torch.float64, False)
    for branch, sums in double.metadata["sums"].items():
        for masked, value in sums["reri"].items():
            assert single.metadata["sums"][branch]["reri"][masked] == pytest.approx(value, rel=2e-3), (branch, masked)


def test_the_prunable_set_of_bevfusion() -> None:
    """Convolutions, linear layers, attention projections and sparse convolutions; no norm, bias, table or geometry."""
    weights = find_weights(adapt(models.build("bevfusion-tiny")))
    chosen = {w.name for w in weights if w.prunable}
    assert all(name.endswith(("weight", "in_proj_weight")) for name in chosen)
    assert {
        "encoders.camera.backbone.stages.0.blocks.0.attn.w_msa.qkv.weight",
        "encoders.camera.backbone.stages.0.downsample.reduction.weight",
        "encoders.lidar.backbone.encoder_layers.encoder_layer1.0.conv1.weight",
        "heads.object.decoder.0.self_attn.in_proj_weight",
        "heads.object.decoder.0.self_attn.out_proj.weight",
        "heads.object.class_encoding.weight",
        "fuser.0.weight",
    } <= chosen
    left_out = ("norm", "bn", "relative_position_bias_table", "frustum", ".dx", ".bx", ".nx")
    assert not [name for name in chosen if any(part in name for part in left_out)]
    geometry = {w.name.rpartition(".")[2] for w in weights if not w.learned}
    assert geometry == {"frustum", "dx", "bx", "nx"}


def test_the_fuser_is_split() -> None:
    from fastalter.fusion.split_conv import SplitConv
    from fastalter.fusion.stubs import recorded

    model = models.build("bevfusion-tiny").double()
    fusion = adapt(model)
    (batch,) = data.load("example", config=model.config, batches=1, batch_size=1)
    split = SplitConv(fusion)
    with recorded(fusion) as record, split.recording(record):
        fusion.total_loss(batch.to(dtype=torch.float64))
    assert split.widths == {"camera": (0, 16), "lidar": (16, model.fuser[0].in_channels)}
