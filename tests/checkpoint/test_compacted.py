"""Checkpoints of compacted models: written, read back as the compacted model, and not trusted."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fastalter import CompactionPlan, compact_model
from fastalter.checkpoint import load_checkpoint, save_compacted
from fastalter.checkpoint.config_text import CONFIG_KEY, PLAN_KEY
from fastalter.data.example import example_batch
from fastalter.errors import CheckpointError
from fastalter.fusion import adapt
from fastalter.models import build
from fastalter.structure.grouping.find import find_groups
from fastalter.structure.mask import ChannelMask


@pytest.fixture(scope="module")
def original():
    """A tiny model, its batch, and a random mask of half of its channels."""
    torch.manual_seed(0)
    model = build("bevfusion-tiny-resnet").eval()
    batch = example_batch(model.config, 1)
    groups = find_groups(adapt(model), batch)
    return model, batch, ChannelMask(torch.rand(groups.size) >= 0.5, groups, ratio=0.5)


@pytest.fixture(scope="module")
def written(original, tmp_path_factory):
    model, _, mask = original
    plan = CompactionPlan.of(mask.groups, mask.flat, model)
    path = tmp_path_factory.mktemp("compacted") / "small.safetensors"
    small = compact_model(model, mask)
    save_compacted(path, small, plan)
    return path, small, plan


def changed(path, target, metadata=(), tensors=()):
    """The file with other metadata or tensors; None drops an entry."""
    with safe_open(path, "pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()} | dict(tensors)  # noqa: SIM118
        text = {**file.metadata(), **dict(metadata)}
    kept = ({key: value for key, value in entries.items() if value is not None} for entries in (state, text))
    save_file(next(kept), target, metadata=next(kept))
    return target


def test_the_file_gives_the_compacted_model_back(original, written):
    _, batch, _ = original
    path, small, plan = written
    loaded = load_checkpoint(path)
    assert loaded.plan.to_json() == plan.to_json()
    assert loaded.config == small.config
    assert loaded.notes == []
    assert loaded.model.training
    assert loaded.model.fuser[0].weight.dtype == torch.float32
    same_network(loaded.model.eval(), small, batch)


def same_network(ours, theirs, batch):
    """Layers and tensors bitwise; the map as close as two runs of one network are."""
    state = theirs.state_dict()
    assert [key for key, value in ours.state_dict().items() if not torch.equal(value, state[key])] == []
    with torch.no_grad():
        maps = [model(batch)["dense_heatmap"] for model in (ours, theirs)]
    assert repr(ours) == repr(theirs)
    torch.testing.assert_close(*maps, rtol=1e-5, atol=1e-5)


def test_it_is_written_again_as_it_was(written, tmp_path):
    path, _, plan = written
    loaded = load_checkpoint(path)
    with torch.no_grad():
        loaded.model.fuser[0].weight.add_(1)
    loaded.save(tmp_path / "again.safetensors")
    again = load_checkpoint(tmp_path / "again.safetensors")
    assert again.plan.to_json() == plan.to_json()
    state = loaded.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.model.state_dict().items())


def test_images_of_another_size_and_a_named_model(written):
    path, small, _ = written
    size = (32, 88)
    assert load_checkpoint(path, image_size=size).config == small.config.with_image_size(*size)
    assert load_checkpoint(path, model="bevfusion-tiny-resnet").config == small.config
    with pytest.raises(
        CheckpointError, match=r"the plan cuts encoders\.camera\.backbone\.\S+, which the model does not"
    ):
        load_checkpoint(path, model="bevfusion-tiny")


def test_a_users_own_model_takes_the_plan_and_the_weights_from_the_file(original, written):
    from safetensors.torch import load_file

    _, batch, _ = original
    path, small, _ = written
    own = build("bevfusion-tiny-resnet", seed=3).eval()
    CompactionPlan.load(path).apply(own).load_state_dict(load_file(path), strict=True)
    same_network(own, small, batch)


def broken_plan(path, change):
    with safe_open(path, "pt") as file:
        document = json.loads(file.metadata()[PLAN_KEY])
    change(document)
    return json.dumps(document)


def huge(document):
    document["tensors"]["fuser.0.weight"]["shape"] = [2**30, 2**30, 3, 3]


def wider(document):
    name = next(name for name in document["attributes"] if name.startswith("fuser"))
    document["attributes"][name] = {"padding_mode": [1, 2]}


def more_kept(document):
    entry = document["tensors"]["fuser.1.weight"]["keep"]
    document["positions"].append(list(range(3)))
    entry["0"] = len(document["positions"]) - 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=0), r"its plan: version is 0"),
        (
            lambda d: d["tensors"].update(nowhere={"shape": [1], "keep": {}}),
            "the plan cuts nowhere, which the model does",
        ),
        (huge, r"fuser\.0\.weight has shape \(32, \d+, 3, 3\) and the plan cuts \(1073741824, 1073741824, 3, 3\)"),
        (wider, r"the plan changes fuser\.\d\.padding_mode from 1 and the model has"),
        (more_kept, r"wrong shapes: fuser\.1\.weight \[\d+\] instead of \[3\]"),
        (lambda d: d.update(folds=[["fuser.2", "fuser.1"]]), "'fuser.2', which is ReLU: no convolution"),
        (lambda d: d.update(layer_norms={"fuser.0": 3}), "fuser.0: a Conv2d is no plain LayerNorm"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_in_one_line(written, change, message, tmp_path):
    text = broken_plan(written[0], change)
    path = changed(written[0], tmp_path / "bad.safetensors", {PLAN_KEY: text})
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({PLAN_KEY: "{"}, {}, "its plan: not JSON"),
        ({CONFIG_KEY: None}, {}, "carries no fastalter_config: build your own model"),
        ({CONFIG_KEY: "{}"}, {}, "the plan cuts encoders"),
        ({}, {"fuser.0.weight": None}, r"lacks fuser\.0\.weight"),
        ({}, {"more": torch.zeros(2)}, r"has more \[2\] that the model does not"),
        ({}, {"fuser.1.weight": torch.zeros(2)}, r"wrong shapes: fuser\.1\.weight"),
        ({PLAN_KEY: None}, {}, "small|shapes|configuration"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(written, metadata, tensors, message, tmp_path):
    path = changed(written[0], tmp_path / "bad.safetensors", metadata, tensors)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_a_model_without_a_configuration_is_not_written(written, tmp_path):
    with pytest.raises(CheckpointError, match="a Linear has no configuration"):
        save_compacted(tmp_path / "x.safetensors", torch.nn.Linear(2, 2), written[2])
    assert list(tmp_path.iterdir()) == []
