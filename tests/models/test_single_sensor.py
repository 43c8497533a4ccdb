"""Detectors of one sensor: the parents of a fusion model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fastalter
from fastalter.data import Batch, example_batch
from fastalter.errors import ModelError

FUSION = fastalter.models.config_of("bevfusion-tiny")


@pytest.fixture(scope="module")
def batch() -> Batch:
    return example_batch(FUSION, batch_size=2, seed=2)


@torch.no_grad()
@pytest.mark.parametrize(("sensor", "other"), [("camera", "lidar"), ("lidar", "camera")])
def test_it_sees_its_sensor_alone(sensor: str, other: str, batch: Batch) -> None:
    model = fastalter.models.build(FUSION.with_sensors(sensor)).eval()
    assert model.config.name == f"bevfusion-tiny-{sensor}"
    assert not [key for key in model.state_dict() if key.startswith(f"encoders.{other}.")]
    images, points = batch.images + 1, [cloud[::2] for cloud in batch.points]
    changed = {"camera": {"images": images}, "lidar": {"points": points}}
    before = model(batch)["dense_heatmap"]
    same = model(Batch(**{**vars(batch), **changed[other]}))["dense_heatmap"]
    moved = model(Batch(**{**vars(batch), **changed[sensor]}))["dense_heatmap"]
    assert torch.equal(before, same)
    assert not torch.equal(before, moved)


@pytest.mark.parametrize("sensor", ["camera", "lidar"])
def test_its_branch_fits_the_fusion_model(sensor: str) -> None:
    parent = fastalter.models.build(FUSION.with_sensors(sensor), seed=1)
    child = fastalter.models.build(FUSION, seed=2)
    branch = {k: v for k, v in parent.state_dict().items() if k.startswith(f"encoders.{sensor}.")}
    assert branch.keys() == {k for k in child.state_dict() if k.startswith(f"encoders.{sensor}.")}
    assert not child.load_state_dict(branch, strict=False).unexpected_keys


def test_it_learns_in_a_step(batch: Batch) -> None:
    for sensor in ("camera", "lidar"):
        model = fastalter.models.build(FUSION.with_sensors(sensor))
        losses = model.loss(batch)
        sum(value for name, value in losses.items() if "loss" in name).backward()
        assert all(p.grad is not None for p in model.encoders.parameters() if p.requires_grad)


@pytest.mark.parametrize(("sensors", "message"), [((), "no sensors"), (("sonar",), "no branch for sensor 'sonar'")])
def test_sensors_that_are_not_there(sensors: tuple[str, ...], message: str) -> None:
    with pytest.raises(ModelError, match=f"{message}; config.sensors takes camera, lidar"):
        fastalter.models.build(replace(FUSION, sensors=sensors))


def test_the_configuration_survives_json() -> None:
    single = FUSION.with_sensors("lidar")
    assert fastalter.models.BEVFusionConfig.from_dict(single.to_dict()) == single
