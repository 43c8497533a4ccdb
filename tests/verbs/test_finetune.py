"""The finetune verb on the tiny model, as a user runs it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastalter import Mask
from fastalter.checkpoint import load_checkpoint
from fastalter.data.synthetic import SyntheticSettings
from fastalter.data.synthetic.dataset import write_dataset
from fastalter.finetune import main
from fastalter.finetuning.job import zero_remarks
from fastalter.finetuning.model import mask_digest
from fastalter.models import build, config_of
from fastalter.models.bevfusion import BEVFusion
from fastalter.training.state import load_state
from tests.checkpoint.files import in_layout
from tests.masks.nets import mask_of

STEPS = 4
NAMES = (
    "encoders.camera.vtransform.depthnet.0.weight",
    "encoders.lidar.backbone.conv_input.0.weight",
    "fuser.0.weight",
    "heads.object.shared_conv.weight",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("finetune") / "data"
    write_dataset(root, SyntheticSettings(scenes=1, val_scenes=0, samples=3, seed=5), workers=1)
    return f"nuscenes:{root}:v1.0-synthetic:synthetic_train"


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mask") / "mask.safetensors"
    mask_of(build("bevfusion-tiny"), NAMES, ratio=0.7).save(path)
    return path


@pytest.fixture(scope="module")
def pruned(checkpoint: Path, mask: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint with the mask's weights at zero, and what made it beside it."""
    loaded, held = load_checkpoint(checkpoint), Mask.load(mask)
    with torch.no_grad():
        for name in held:
            loaded.model.get_parameter(name).mul_(held[name])
    path = tmp_path_factory.mktemp("pruned") / "pruned.pth"
    loaded.save(path)
    path.with_name("pruned.pth.json").write_text(json.dumps({"kind": "pruned"}))
    return path


def command(source: Path, folder: Path, data: str, *more: object) -> list[str]:
    folder.mkdir(exist_ok=True)
    quick = ["--image-size", "32x88", "--batch-size", "1", "--steps", str(STEPS), "--lr", "0.001"]
    places = ["--out", str(folder / "tuned.pth"), "--work", str(folder / "work")]
    return [str(source), "--data", data, *places, *quick, *map(str, more)]


@pytest.fixture(scope="module")
def tuned(pruned: Path, mask: Path, dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    assert main(command(pruned, folder, dataset, "--mask", mask, "--json")) == 0
    return folder


def weights(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def failing(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException | None = None) -> None:
    """The loss of the step `at` (counted in this process) is NaN, or raises."""
    calls, loss = [], BEVFusion.loss

    def spoiled(self: BEVFusion, batch: Any) -> dict[str, Tensor]:
        calls.append(batch.tokens)
        losses = loss(self, batch)
        if len(calls) == at + 1:
            if error is not None:
                raise error
            return {name: value * float("nan") for name, value in losses.items()}
        return losses

    monkeypatch.setattr(BEVFusion, "loss", spoiled)


def test_pruned_weights_are_zero_in_every_file_and_the_others_are_trained(
    tuned: Path, pruned: Path, mask: Path
) -> None:
    held = Mask.load(mask)
    before, model = load_checkpoint(pruned).model, load_checkpoint(tuned / "tuned.pth").model
    saved = load_state(tuned / "work" / "last.pt")
    assert saved.step == STEPS
    for name in held:
        for weight in (model.get_parameter(name), saved.model[name]):
            assert not weight[~held[name]].any(), name
        assert not torch.equal(model.get_parameter(name)[held[name]], before.get_parameter(name)[held[name]]), name
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, before.get_parameter(n))]
    assert len(moved) > 50


def test_the_file_has_the_layout_it_came_in(tuned: Path, pruned: Path) -> None:
    ours = torch.load(tuned / "tuned.pth", weights_only=True)
    theirs = torch.load(pruned, weights_only=True)
    assert ours["meta"] == theirs["meta"]
    shapes = {name: (value.shape, value.dtype) for name, value in ours["state_dict"].items()}
    assert shapes == {name: (value.shape, value.dtype) for name, value in theirs["state_dict"].items()}


def test_a_file_of_mmdetection3d_stays_one(checkpoint: Path, mask: Path, dataset: str, tmp_path: Path) -> None:
    source = tmp_path / "mmdet3d.pth"
    state = in_layout(load_checkpoint(checkpoint).model.state_dict(), "mmdet3d", "spconv2")
    torch.save({"meta": {}, "state_dict": state}, source)
    assert main(command(source, tmp_path / "run", dataset, "--steps", 1, "--mask", mask)) == 0
    assert list(weights(tmp_path / "run" / "tuned.pth")) == list(state)
    held, model = Mask.load(mask), load_checkpoint(tmp_path / "run" / "tuned.pth").model
    assert not any(bool(model.get_parameter(name)[~held[name]].any()) for name in held)


def test_the_provenance_tells_what_made_the_file(tuned: Path, pruned: Path, mask: Path, dataset: str) -> None:
    facts = json.loads((tuned / "tuned.pth.json").read_text())
    assert facts["sha256"] == hashlib.sha256((tuned / "tuned.pth").read_bytes()).hexdigest()
    assert facts["checkpoint"]["sha256"] == hashlib.sha256(pruned.read_bytes()).hexdigest()
    assert facts["made_by"] == {"kind": "pruned"}
    assert facts["mask"]["digest"] == mask_digest(Mask.load(mask))
    assert (facts["data"], facts["batch_size"], facts["image_size"]) == (dataset, 1, [32, 88])
    assert (facts["training"]["steps"], facts["training"]["lr"]) == (STEPS, 0.001)
    with open(tuned / "work" / "losses.csv") as file:
        lines = file.read().splitlines()
    assert len(lines) == STEPS + 1
    assert list((tuned / "work" / "tensorboard").iterdir())


@pytest.mark.parametrize("augment", [False, True])
def test_a_stopped_run_resumes_bit_for_bit(
    pruned: Path, mask: Path, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augment: bool, tuned: Path
) -> None:
    more = ["--mask", mask, *(["--augment"] if augment else [])]
    straight = tuned
    if augment:
        straight = tmp_path / "straight"
        assert main(command(pruned, straight, dataset, *more)) == 0
    with monkeypatch.context() as patch:
        failing(patch, 2, KeyboardInterrupt())
        assert main(command(pruned, tmp_path / "run", dataset, *more)) == 130
    assert not (tmp_path / "run" / "tuned.pth").exists()
    assert load_state(tmp_path / "run" / "work" / "last.pt").step == 2
    assert main(command(pruned, tmp_path / "run", dataset, *more, "--resume")) == 0
    assert_same_weights(straight / "tuned.pth", tmp_path / "run" / "tuned.pth")


def test_a_loss_that_is_not_finite_stops_and_loses_nothing(
    pruned: Path,
    mask: Path,
    dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tuned: Path,
) -> None:
    folder, more = tmp_path / "run", ["--mask", mask, "--checkpoint-every", 1]
    with monkeypatch.context() as patch:
        failing(patch, 2)
        assert main(command(pruned, folder, dataset, *more)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: step 2, batch 2 (")
    assert "not finite: total (nan)" in said
    assert f"the last good checkpoint is {folder / 'work' / 'last.pt'} with 2 steps" in said
    assert said.count("\n") == 1
    assert not (folder / "tuned.pth").exists()
    saved = load_state(folder / "work" / "last.pt")
    assert saved.step == 2
    assert all(bool(torch.isfinite(v).all()) for v in saved.model.values() if v.is_floating_point())
    assert main(command(pruned, folder, dataset, *more, "--resume")) == 0
    assert_same_weights(tuned / "tuned.pth", folder / "tuned.pth")


def test_weights_that_should_be_zero_are_zeroed_and_counted(
    checkpoint: Path, mask: Path, dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = Mask.load(mask)
    model = load_checkpoint(checkpoint).model
    alive = sum(int((model.get_parameter(name)[~held[name]] != 0).sum()) for name in held)
    pruned = held.layout.size - held.kept_total
    assert main(command(checkpoint, tmp_path / "run", dataset, "--steps", 1, "--mask", mask)) == 0
    said = capsys.readouterr().out
    assert f"note: {alive:,} of the {pruned:,} weights that the mask drops were not zero; they are now" in said
    assert f"{held.kept_total:,} of {held.layout.size:,} prunable weights, the others held at zero: 1 steps" in said
    trained = load_checkpoint(tmp_path / "run" / "tuned.pth").model
    assert not any(bool(trained.get_parameter(name)[~held[name]].any()) for name in held)


def test_a_pruned_file_gets_no_such_note(pruned: Path, mask: Path) -> None:
    assert zero_remarks(load_checkpoint(pruned).model, Mask.load(mask)) == []


def test_dense_training_holds_nothing(pruned: Path, mask: Path, dataset: str, tmp_path: Path) -> None:
    assert main(command(pruned, tmp_path / "run", dataset, "--steps", 1, "--dense")) == 0
    model, held = load_checkpoint(tmp_path / "run" / "tuned.pth").model, Mask.load(mask)
    assert all(bool(model.get_parameter(name)[~held[name]].any()) for name in held)
    assert json.loads((tmp_path / "run" / "tuned.pth.json").read_text())["mask"] is None


def test_bad_input_is_one_line_and_writes_nothing(
    pruned: Path, mask: Path, dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = config_of("bevfusion-tiny").with_sensors("lidar")
    other = tmp_path / "other.safetensors"
    mask_of(build(wide), ["fuser.0.weight"]).save(other)
    good = ["--mask", mask]
    for data, more, message in (
        (dataset, [], "give the mask that is held, with --mask, or --dense"),
        (dataset, [*good, "--dense"], "give the mask that is held, with --mask, or --dense"),
        (dataset, ["--mask", other], "fuser.0.weight: its shape is"),
        (dataset, ["--mask", pruned], "not a readable safetensors file"),
        (dataset, ["--mask", tmp_path / "gone"], "gone: no such file"),
        (dataset, [*good, "--lr", "0"], "lr: got 0.0; give a finite number above 0"),
        (dataset, [*good, "--steps", "0"], "steps: got 0; give a whole number from 1"),
        (dataset, [*good, "--batch-size", "0"], "--batch-size 0: give 1 or more"),
        (dataset, [*good, "--batch-size", "9"], "3 frames do not fill a batch of 9"),
        (dataset, [*good, "--out", pruned], "is also the checkpoint"),
        (dataset, [*good, "--resume"], "nothing to resume; start the run without resume"),
        (dataset, [*good, "--device", "tpu"], "--device is 'tpu'"),
        ("example", good, "--data example: random batches teach nothing"),
        ("nuscenes:/nowhere", good, "/nowhere: no such folder"),
    ):
        folder = tmp_path / "run"
        assert main(command(pruned, folder, data, *more)) == 2, message
        said = capsys.readouterr().err
        assert said.startswith("error: "), message
        assert message in said
        assert said.count("\n") == 1, message
        files = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]
        assert files == [], message


def test_a_resume_with_other_data_is_refused(
    pruned: Path, mask: Path, dataset: str, tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (tuned / "tuned.pth").read_bytes()
    assert main(command(pruned, tuned, dataset, "--mask", mask, "--resume", "--batch-size", "2")) == 2
    assert "batch_size was 1, now it is 2; resume with the same batch_size" in capsys.readouterr().err
    assert main(command(pruned, tuned, dataset, "--mask", mask)) == 2
    assert "an earlier run is here; resume it or name another folder" in capsys.readouterr().err
    assert (tuned / "tuned.pth").read_bytes() == before
