"""Ground truth of a synthetic dataset through our loader, our conventions and the official metric: mAP 1."""

from __future__ import annotations

import pytest
import torch

from fastalter.data import open_frames
from fastalter.data.nuscenes import NuScenesFrames
from fastalter.data.synthetic import SyntheticSettings
from fastalter.data.synthetic.dataset import write_dataset
from fastalter.tasks.detection.evaluate import evaluate_detections
from fastalter.tasks.detection.results import Detections

SETTINGS = SyntheticSettings(scenes=0, val_scenes=8, samples=2, seed=2, image_size=(27, 48))


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> NuScenesFrames:
    root = tmp_path_factory.mktemp("round") / "data"
    write_dataset(root, SETTINGS, workers=1)
    opened = open_frames(f"nuscenes:{root}:v1.0-synthetic:synthetic_val")  # the metric drops what no point hit
    assert isinstance(opened, NuScenesFrames)
    return opened


def truth(frames: NuScenesFrames) -> dict[str, Detections]:
    """Every annotated box as a detection that is sure of itself."""
    return {
        sample.token: {
            "boxes": sample.boxes.float(),
            "scores": torch.linspace(1.0, 0.5, len(sample.boxes)),
            "labels": sample.labels,
        }
        for sample in frames
    }


def test_ground_truth_in_map_one_out(frames: NuScenesFrames) -> None:
    found = evaluate_detections(truth(frames), frames, "synthetic_val")
    assert found.mean_ap == pytest.approx(1.0)
    assert all(ap == pytest.approx(1.0) for ap in found.mean_label_aps.values())
    assert found.tp_errors["trans_err"] < 1e-4
    assert found.tp_errors["scale_err"] < 1e-4
    assert found.tp_errors["orient_err"] < 2e-3  # the LiDAR is tilted
    assert found.tp_errors["vel_err"] < 5e-3


def test_another_class_of_the_same_size_costs_both_classes(frames: NuScenesFrames) -> None:
    swapped = truth(frames)
    for detections in swapped.values():
        labels = detections["labels"]
        detections["labels"] = torch.where(labels == 1, 2, torch.where(labels == 2, 1, labels))
    found = evaluate_detections(swapped, frames, "synthetic_val")
    assert found.mean_label_aps["truck"] < 0.2
    assert found.mean_label_aps["construction_vehicle"] < 0.2
    assert found.mean_ap == pytest.approx(0.8, abs=0.04)
