"""The embedded checkpoint is the one its provenance describes, and detects what it should."""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastalter
from fastalter.assets import EMBEDDED, provenance
from fastalter.checkpoint import load_checkpoint
from fastalter.data import PrepareOptions, open_frames
from fastalter.data.synthetic import SyntheticSettings
from fastalter.data.synthetic.dataset import write_dataset
from fastalter.data.views import in_order
from fastalter.models.bevfusion import BEVFusion
from fastalter.tasks.detection.detect import detect
from fastalter.tasks.detection.evaluate import DetectionResult, evaluate_detections

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of a seed that the recipe does not use."""
    root = tmp_path_factory.mktemp("embedded") / "data"
    write_dataset(root, SyntheticSettings(scenes=0, val_scenes=12, samples=2, seed=99))
    return root


def evaluate(model: BEVFusion, root: Path) -> DetectionResult:
    frames = open_frames(f"nuscenes:{root}:v1.0-synthetic:synthetic_val", keep_unseen=True)
    options = PrepareOptions(model.config.camera.image_size, model.config.lidar.point_cloud_range)
    found = detect(model, in_order(frames, "val", batch_size=8, options=options))
    return evaluate_detections(found, frames, "synthetic_val")


def test_it_is_the_file_that_the_provenance_describes() -> None:
    known = provenance()
    assert known["sha256"] == hashlib.sha256(EMBEDDED.read_bytes()).hexdigest()
    assert known["settings"]["shrink"] == 1
    assert EMBEDDED.stat().st_size < 8e6
    loaded = load_checkpoint(EMBEDDED)
    assert loaded.layout == "mit"
    assert loaded.config == fastalter.models.config_of("bevfusion-tiny")
    assert known["parameters"] == sum(parameter.numel() for parameter in loaded.model.parameters())
    with EMBEDDED.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {"camera", "lidar", "fusion"}


def test_what_the_recipe_measured() -> None:
    """The fusion is well above both parents, and neither branch is dead weight."""
    results = {name: result["mean_ap"] for name, result in provenance()["results"].items()}
    assert results["fusion"] >= 0.5
    for other in ("camera", "lidar", "fusion, camera zeroed", "fusion, lidar zeroed"):
        assert results["fusion"] >= results[other] + 0.1, other


def test_it_detects_in_scenes_of_another_seed_and_needs_both_sensors(data: Path) -> None:
    model = load_checkpoint(EMBEDDED).model
    recorded = provenance()["results"]["fusion"]["mean_ap"]
    whole = evaluate(model, data)
    assert whole.mean_ap == pytest.approx(recorded, abs=0.12)  # 24 frames against 320
    for sensor in ("camera", "lidar"):
        handle = model.get_submodule(model.outlets[sensor]).register_forward_hook(
            lambda m, i, out: torch.zeros_like(out)
        )
        assert evaluate(model, data).mean_ap < whole.mean_ap - 0.1
        handle.remove()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_recipe_runs_from_start_to_end_and_resumes(tmp_path: Path) -> None:
    """With a 200th of its steps: files come out, and a second call has nothing left to train."""
    command = [sys.executable, "-m", "recipes.tiny_checkpoint", "--shrink", "200"]
    command += ["--work", str(tmp_path / "work"), "--assets", str(tmp_path / "assets")]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "fusion: 6 steps" in said
    first = load_checkpoint(tmp_path / "assets" / "bevfusion_tiny.pth").model.state_dict()
    names = {path.name for path in (tmp_path / "assets").iterdir()}
    assert names == {f"bevfusion_tiny.{kind}" for kind in ("pth", "json", "csv", "png")}
    (tmp_path / "work" / "fusion.pt").unlink()  # the last checkpoint of the training is still there
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "camera: " not in said.split("evaluation")[0]
    again = load_checkpoint(tmp_path / "assets" / "bevfusion_tiny.pth").model.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.items())
