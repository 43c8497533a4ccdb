"""The evaluate verb on the tiny model, as a user runs it, and the function behind it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastalter.assets import EMBEDDED
from fastalter.checkpoint import load_checkpoint
from fastalter.data import prepare
from fastalter.data.drop import without
from fastalter.data.loading import prepare_options
from fastalter.data.nuscenes import NuScenesFrames
from fastalter.errors import DataError, ModelError
from fastalter.evaluate import main
from fastalter.evaluation import evaluate_model
from fastalter.models import build
from fastalter.tasks.detection.detect import detect
from fastalter.tasks.detection.evaluate import DetectionResult, evaluate_detections, evaluate_results
from tests.data.tiny_nuscenes import SAMPLES, write_tiny_nuscenes

SMALL = ["--image-size", "32x88", "--batch-size", "2"]
Printed = Callable[[], dict[str, Any]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dataset with a split of its own."""
    folder = tmp_path_factory.mktemp("evaluate") / "nuscenes"
    write_tiny_nuscenes(folder)
    (folder / "v1.0-mini" / "splits.json").write_text(json.dumps({"mine": ["scene-9001"], "none": ["scene-1"]}))
    return folder


@pytest.fixture(scope="module")
def data(root: Path) -> str:
    return f"nuscenes:{root}:v1.0-mini:mine"


@pytest.fixture(scope="module")
def finished(root: Path, data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation of the embedded checkpoint, with two sensors dropped."""
    out = tmp_path_factory.mktemp("finished") / "out"
    drops = ["--drop", "camera", "--drop", "CAM_BACK"]
    assert main([str(EMBEDDED), "--data", data, *SMALL, *drops, "--out", str(out), "--json"]) == 0
    return out


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    def read() -> dict[str, Any]:
        out = capsys.readouterr().out
        assert out.count("\n") == 1
        found: dict[str, Any] = json.loads(out)
        return found

    return read


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The sensors dropped in evaluations that really run."""
    calls: list[str | None] = []

    def spy(*arguments: Any, **named: Any) -> DetectionResult:
        calls.append(named["drop"])
        return evaluate_model(*arguments, **named)

    monkeypatch.setattr("fastalter.evaluation.model.evaluate_model", spy)
    return calls


def test_the_numbers_are_those_of_the_function(finished: Path, root: Path) -> None:
    written = json.loads((finished / "evaluation.json").read_text())
    model = load_checkpoint(EMBEDDED, image_size=(32, 88)).model
    frames = NuScenesFrames(root, "v1.0-mini", "mine")
    assert list(written["states"]) == ["none", "camera", "CAM_BACK"]
    for state, found in written["states"].items():
        expected = evaluate_model(model, frames, batch_size=2, drop=None if state == "none" else state).to_dict()
        assert {**found, "seconds": 0} == {**expected, "seconds": 0}, state
    assert model.training, "the model's mode is put back"
    assert (written["split"], written["frames"], written["synthetic"]) == ("mine", SAMPLES, False)
    assert written["image_size"] == [32, 88]


def test_results_are_kept_in_the_official_layout(finished: Path) -> None:
    uses, found = {}, {}
    for state in ("none", "camera", "CAM_BACK"):
        document = json.loads((finished / state / "results.json").read_text())
        assert len(document["results"]) == SAMPLES
        assert sum(map(len, document["results"].values())) > 0
        found[state] = document["results"]
        uses[state] = (document["meta"]["use_camera"], document["meta"]["use_lidar"])
        summary = json.loads((finished / state / "metrics_summary.json").read_text())
        assert summary["mean_ap"] == json.loads((finished / state / "state.json").read_text())["numbers"]["mean_ap"]
    assert uses == {"none": (True, True), "camera": (False, True), "CAM_BACK": (True, True)}
    assert found["none"] != found["camera"] != found["CAM_BACK"] != found["none"]


@pytest.mark.parametrize("sensor", ["camera", "CAM_BACK"])
def test_a_dropped_sensor_is_dark_in_every_batch(finished: Path, root: Path, sensor: str) -> None:
    model = load_checkpoint(EMBEDDED, image_size=(32, 88)).model
    frames, options = NuScenesFrames(root, "v1.0-mini", "mine"), prepare_options(model.config)
    found = detect(model, [without(prepare(frame, options), sensor) for frame in frames])
    expected = evaluate_detections(found, frames).to_dict()
    written = json.loads((finished / sensor / "state.json").read_text())["numbers"]
    assert written["mean_ap"] == pytest.approx(expected["mean_ap"], abs=1e-6)
    document = json.loads((finished / sensor / "results.json").read_text())["results"]
    for token, detections in found.items():
        scores = detections["scores"].sort(descending=True).values
        kept = torch.tensor([box["detection_score"] for box in document[token]])
        assert torch.allclose(kept, scores[: len(kept)], atol=1e-5)


def test_finished_states_are_not_run_again(
    finished: Path, data: str, tmp_path: Path, ran: list[str | None], printed: Printed
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    before = json.loads((out / "evaluation.json").read_text())
    command = [str(EMBEDDED), "--data", data, *SMALL, "--out", str(out), "--json", "--drop", "camera"]
    assert main(command) == 0
    assert ran == []
    assert printed()["states"] == {state: before["states"][state] for state in ("none", "camera")}
    assert main([*command, "--drop", "lidar"]) == 0
    assert ran == ["lidar"]
    printed()
    (out / "camera" / "results.json").write_text("{}")  # damaged: made again
    assert main([*command, "--drop", "lidar"]) == 0
    assert ran == ["lidar", "camera"]
    assert {**printed()["states"]["camera"], "seconds": 0} == {**before["states"]["camera"], "seconds": 0}


@pytest.mark.parametrize("other", ["checkpoint", "sweeps", "image size", "data"])
def test_another_question_is_answered_anew(
    finished: Path, data: str, tmp_path: Path, ran: list[str | None], checkpoint: Path, other: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    own = tmp_path / "nuscenes"
    if other == "data":
        write_tiny_nuscenes(own, scene="scene-8")
        (own / "v1.0-mini" / "splits.json").write_text(json.dumps({"mine": ["scene-8"], "none": ["scene-1"]}))
        data = f"nuscenes:{own}:v1.0-mini:mine"
    changed = {
        "checkpoint": [str(checkpoint), *SMALL],
        "sweeps": [str(EMBEDDED), *SMALL, "--sweeps", "1"],
        "image size": [str(EMBEDDED), "--image-size", "32x96"],
        "data": [str(EMBEDDED), *SMALL],
    }[other]
    assert main([*changed, "--data", data, "--out", str(out)]) == 0
    assert ran == [None]


def test_tables_show_means_and_classes(finished: Path, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(EMBEDDED), "--data", data, *SMALL, "--out", str(finished), "--drop", "camera", "--drop", "CAM_BACK"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "dropped" in said.out
    assert "mATE" in said.out
    lines = [line.split() for line in said.out.splitlines()]
    states = json.loads((finished / "evaluation.json").read_text())["states"]
    for state, values in states.items():
        assert [state, f"{values['mean_ap']:.3f}", f"{values['nd_score']:.3f}"] in [line[:3] for line in lines]
    car = ["car", *(f"{values['mean_label_aps']['car']:.3f}" for values in states.values())]
    assert car in lines
    assert "note: kept from an earlier call: none, camera, CAM_BACK" in said.out
    assert f"wrote: {finished / 'evaluation.json'}" in said.out


def test_a_results_file_gives_the_same_numbers(finished: Path, data: str, printed: Printed) -> None:
    path = finished / "camera" / "results.json"
    assert main(["--results", str(path), "--data", data, "--json"]) == 0
    found = printed()
    expected = json.loads((finished / "evaluation.json").read_text())["states"]["camera"]
    assert {**found["states"]["none"], "seconds": 0} == {**expected, "seconds": 0}
    assert (found["model"], found["results"]) == (None, str(path))


def without_sample(document: dict[str, Any]) -> None:
    document["results"].popitem()


def with_stranger(document: dict[str, Any]) -> None:
    document["results"]["stranger"] = []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_sample, f"no detections for 1 of {SAMPLES} samples of split mine, the first sample-2"),
        (with_stranger, "detections for 1 samples not in split mine, the first stranger"),
    ],
)
def test_a_results_file_of_other_samples_is_refused(
    finished: Path,
    data: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    document = json.loads((finished / "none" / "results.json").read_text())
    damage(document)
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(document))
    assert main(["--results", str(path), "--data", data, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {path}: {message}")
    assert said.err.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_synthetic_data_are_made_kept_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    command = [str(EMBEDDED), "--scenes", "1", "--seed", "3", "--json"]
    assert main([*command, "--work", str(tmp_path / "work")]) == 0
    first = capsys.readouterr()
    (kept,) = (tmp_path / "work").iterdir()
    table = kept / "v1.0-synthetic" / "sample.json"
    stamp = table.stat().st_mtime_ns
    assert main([*command, "--work", str(tmp_path / "work")]) == 0
    assert table.stat().st_mtime_ns == stamp
    assert main(command) == 0  # made in a temporary folder, the same
    last = capsys.readouterr().out.splitlines()
    numbers = [json.loads(line) for line in (first.out, *last)]
    for found in numbers:
        assert (found["synthetic"], found["split"], found["frames"]) == (True, "synthetic_val", 4)
        found["states"]["none"].pop("seconds")
    assert numbers[0] == numbers[1] == numbers[2]
    assert numbers[0]["states"]["none"]["mean_ap"] > 0.2, "the embedded checkpoint detects"
    assert "note: synthetic data: " in first.err
    assert list((tmp_path / "scratch").iterdir()) == []


def test_bad_options_stop_before_the_work(
    data: str, root: Path, tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt, results = str(EMBEDDED), ["--results", str(finished / "none" / "results.json")]
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (["--data", data], "give a checkpoint file to evaluate, or --results"),
        ([ckpt, "--data", data, *results], "give a checkpoint file to evaluate, or --results"),
        ([*results, "--data", data, "--drop", "lidar"], "--drop: a results file holds what its model found"),
        (results, "--results: name the data that it is for"),
        ([ckpt, "--drop", "radar"], "there is no sensor 'radar' to drop; known: camera, lidar, CAM_FRONT"),
        ([ckpt, "--batch-size", "0"], "--batch-size 0: give 1 or more"),
        ([ckpt, "--device", "tpu"], "--device is 'tpu'"),
        ([ckpt, "--image-size", "big"], "--image-size big: give height x width"),
        ([ckpt, "--out", str(tmp_path / "file")], f"--out {tmp_path / 'file'} is a file"),
        ([ckpt, "--out", str(tmp_path / "a" / "b")], f"there is no folder {tmp_path / 'a'}"),
        ([ckpt, "--data", f"frames:{root}"], "the official metric needs nuscenes:"),
        ([ckpt, "--data", f"nuscenes:{root}:v1.0-mini"], "the devkit cannot evaluate on split 'none (all scenes"),
        ([ckpt, "--data", f"nuscenes:{root}:v1.0-mini:all"], "the devkit cannot evaluate on split 'all'"),
        ([str(tmp_path / "gone.pth"), "--data", data], "gone.pth"),
    ):
        assert main(arguments) == 2, arguments
        said = capsys.readouterr()
        assert said.out == "", arguments
        assert said.err.startswith("error: "), arguments
        assert message in said.err, arguments
        assert said.err.count("\n") == 1, arguments


def test_a_model_that_cannot_be_evaluated_is_refused(root: Path) -> None:
    frames = NuScenesFrames(root, "v1.0-mini", "mine")
    with pytest.raises(ModelError, match="a Linear has no configuration"):
        evaluate_model(nn.Linear(2, 2), frames)
    with pytest.raises(DataError, match="no sensor 'radar'"):
        evaluate_model(build("bevfusion-tiny"), frames, drop="radar")
    broken = build("bevfusion-tiny")
    with torch.no_grad():
        for parameter in broken.heads.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(ModelError, match="sample sample-0 or another of its batch: the model predicts NaN or Inf in "):
        evaluate_model(broken, frames)


def test_a_split_is_checked_before_the_model_runs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("bevfusion-tiny")
    monkeypatch.setattr(type(model), "forward", lambda *arguments: pytest.fail("the model ran"))
    with pytest.raises(DataError, match="cannot evaluate on split 'all'"):
        evaluate_model(model, NuScenesFrames(root, "v1.0-mini", "all"))


def test_numbers_come_back_from_json(finished: Path, root: Path) -> None:
    frames = NuScenesFrames(root, "v1.0-mini", "mine")
    result = evaluate_results(finished / "none" / "results.json", frames)
    again = DetectionResult.from_dict(json.loads(json.dumps(result.to_dict())))
    assert again.to_dict() == result.to_dict()
    assert again.label_aps == result.label_aps
    assert str(again) == str(result), "NaN where a class has no such error"
    with pytest.raises(DataError, match="not the numbers of an evaluation"):
        DetectionResult.from_dict({"mean_ap": 1})
