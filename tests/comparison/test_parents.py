"""The file of the single-sensor backbones, and the regime that begins with it."""

from __future__ import annotations

import json

import torch

from fastalter import models
from fastalter.artifacts import sha256
from recipes.experiment.parents import BACKBONES, read_backbones, write_backbones
from recipes.experiment.regimes import at_load
from recipes.tiny_checkpoint import MODEL, config_of, graft


def test_what_is_written_is_what_a_fusion_model_takes(tmp_path):
    parents = {sensor: models.build(config_of(sensor), seed=seed) for seed, sensor in enumerate(("camera", "lidar"))}
    for sensor, parent in parents.items():
        torch.save(parent.state_dict(), tmp_path / f"{sensor}.pt")
    (tmp_path / "commit").write_text("c0ffee")
    out = tmp_path / "out.safetensors"
    write_backbones(tmp_path, out)
    facts = json.loads(out.with_suffix(".json").read_text())
    assert facts["sha256"] == sha256(out)
    assert facts["parents"]["lidar"] == sha256(tmp_path / "lidar.pt")

    model = models.build(MODEL, seed=7)
    graft(model, read_backbones(out))
    fresh, found = models.build(MODEL, seed=7).state_dict(), model.state_dict()
    for key, value in found.items():
        sensor = key.split(".")[1] if key.startswith("encoders.") else None
        source = fresh if sensor is None or ".dtransform." in key else parents[sensor].state_dict()
        assert torch.equal(value, source[key]), key


def test_the_regime_begins_with_the_file_of_the_repository():
    regime = at_load()
    assert regime.origin == {"backbones": sha256(BACKBONES)}
    assert json.loads(BACKBONES.with_suffix(".json").read_text())["sha256"] == sha256(BACKBONES)
    taken, heads = read_backbones(), []
    for seed in (0, 1):
        state = regime.start(seed).state_dict()
        assert all(torch.equal(state[key], value) for key, value in taken.items())
        heads.append(torch.cat([value.flatten() for key, value in state.items() if key.startswith("heads.")]))
    assert not torch.equal(*heads)
