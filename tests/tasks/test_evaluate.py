"""Detections through the official nuScenes metrics, on the made-up dataset whose truth the devkit reads by itself."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pyquaternion import Quaternion
from torch import Tensor, nn

from fastalter.data.batch import CLASS_NAMES, Batch
from fastalter.data.boxes import from_canonical
from fastalter.data.nuscenes import NuScenesFrames
from fastalter.data.prepare import PrepareOptions
from fastalter.data.views import in_order
from fastalter.errors import DataError
from fastalter.models import build
from fastalter.tasks.detection.coding import BevGrid, encode_boxes
from fastalter.tasks.detection.decode import decode_predictions
from fastalter.tasks.detection.detect import detect
from fastalter.tasks.detection.evaluate import DetectionResult, evaluate_detections
from fastalter.tasks.detection.nms import nms
from fastalter.tasks.detection.results import Detections, attribute_of, to_results
from tests.data.tiny_nuscenes import SAMPLES, write_tiny_nuscenes

CAR, TRUCK, BARRIER, PEDESTRIAN = (CLASS_NAMES.index(name) for name in ("car", "truck", "barrier", "pedestrian"))
TRUTH_IN_RANGE = ("car", "pedestrian", "barrier")
"""The truck is over 100 m away; the other classes are not there."""
POST_CENTER_RANGE = (-200.0, -200.0, -20.0, 200.0, 200.0, 20.0)
Truth = dict[str, Detections]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset with points on its barrier, an attribute on its car and splits of its own."""
    folder = tmp_path_factory.mktemp("evaluate") / "nuscenes"
    write_tiny_nuscenes(folder)
    edit_annotations(folder)
    splits = {"mine": ["scene-9001"], "elsewhere": ["scene-1"]}
    (folder / "v1.0-mini" / "splits.json").write_text(json.dumps(splits))
    return folder


def edit_annotations(folder: Path) -> None:
    table = folder / "v1.0-mini" / "sample_annotation.json"
    records = json.loads(table.read_text())
    for record in records:
        if record["instance_token"] == "instance-2":
            record["num_lidar_pts"] = 5
        if record["instance_token"] == "instance-0":
            record["attribute_tokens"] = ["attribute-0"]
    table.write_text(json.dumps(records))


@pytest.fixture(scope="module")
def frames(root: Path) -> NuScenesFrames:
    return NuScenesFrames(root, split="mine", keep_unseen=True)


@pytest.fixture
def truth(frames: NuScenesFrames) -> Truth:
    """Its boxes as our loader reads them, all scores different."""
    return {
        sample.token: {"boxes": sample.boxes.clone(), "scores": scores(len(sample.boxes)), "labels": sample.labels}
        for sample in frames
    }


def scores(count: int) -> Tensor:
    return torch.linspace(0.9, 0.5, count, dtype=torch.float64)


def changed(truth: Truth, column: slice | list[int], values: Tensor | float, scale: float = 1.0) -> Truth:
    """The detections with some columns of their boxes times `scale` plus `values`."""
    found = {}
    for token, detections in truth.items():
        boxes = detections["boxes"].clone()
        boxes[:, column] = scale * boxes[:, column] + values
        found[token] = {**detections, "boxes": boxes}
    return found


def none_of(truth: Truth) -> Truth:
    return {token: {name: value[:0] for name, value in detections.items()} for token, detections in truth.items()}


def assert_perfect(result: DetectionResult, classes: tuple[str, ...] = TRUTH_IN_RANGE) -> None:
    for name in CLASS_NAMES:
        expected = 1.0 if name in classes else 0.0
        assert result.mean_label_aps[name] == pytest.approx(expected, abs=1e-9), name
        assert list(result.label_aps[name].values()) == pytest.approx([expected] * 4, abs=1e-9)
    for name in classes:
        errors = result.label_tp_errors[name]
        assert errors["trans_err"] == pytest.approx(0, abs=1e-4)
        assert errors["scale_err"] == pytest.approx(0, abs=1e-5)
        assert errors["orient_err"] == pytest.approx(0, abs=1e-3)  # the LiDAR is tilted by 0.02: yaw is not quite kept


def test_ground_truth_as_detections_is_perfect(frames: NuScenesFrames, truth: Truth) -> None:
    result = evaluate_detections(truth, frames)
    assert_perfect(result)
    assert result.mean_ap == pytest.approx(len(TRUTH_IN_RANGE) / 10)
    assert result.label_tp_errors["car"]["vel_err"] == pytest.approx(0, abs=2e-3)
    assert result.label_tp_errors["car"]["attr_err"] == 0.0
    assert result.label_tp_errors["pedestrian"]["vel_err"] == 1.0  # annotated once, so its true velocity is unknown
    assert math.isnan(result.label_tp_errors["barrier"]["attr_err"])
    # Classes without truth in range count as 1 in every error.
    assert result.tp_errors["trans_err"] == pytest.approx(0.7, abs=1e-3)
    assert result.tp_errors["orient_err"] == pytest.approx(6 / 9, abs=1e-3)
    scores = [1 - min(1, error) for error in result.tp_errors.values()]
    assert result.nd_score == pytest.approx((5 * result.mean_ap + sum(scores)) / 10)


def test_results_are_the_annotations(frames: NuScenesFrames, truth: Truth) -> None:
    results = to_results(truth, frames, sensors=["lidar"])
    assert results["meta"]["use_lidar"]
    assert not results["meta"]["use_camera"]
    for token, boxes in results["results"].items():
        annotations = [frames.tables.get("sample_annotation", a) for a in frames.tables.get("sample", token)["anns"]]
        annotations = [a for a in annotations if a["category_name"] != "animal"]
        assert [box["detection_score"] for box in boxes] == truth[token]["scores"].tolist()
        for box, annotation in zip(boxes, annotations, strict=True):
            np.testing.assert_allclose(box["translation"], annotation["translation"], atol=1e-9)
            np.testing.assert_allclose(box["size"], annotation["size"], atol=1e-12)
            turn = Quaternion(box["rotation"]).inverse * Quaternion(annotation["rotation"])
            assert abs(turn.radians) < 0.03
            velocity = frames.tables.box_velocity(annotation["token"])[:2]
            np.testing.assert_allclose(box["velocity"], np.nan_to_num(velocity), atol=2e-3)


def test_rotations_are_the_lidars_turn_after_the_yaw(frames: NuScenesFrames, truth: Truth) -> None:
    for token, boxes in to_results(truth, frames)["results"].items():
        turn = frames.lidar_to_global(token)[:3, :3]
        for box, yaw in zip(boxes, truth[token]["boxes"][:, 6].tolist(), strict=True):
            expected = turn @ Quaternion(axis=(0, 0, 1), angle=yaw).rotation_matrix
            np.testing.assert_allclose(Quaternion(box["rotation"]).rotation_matrix, expected, atol=1e-9)


@pytest.mark.parametrize("convention", ["mit", "mmdet3d"])
def test_perfect_predictions_of_the_head_are_perfect(frames: NuScenesFrames, truth: Truth, convention: str) -> None:
    grid = BevGrid.build((-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), (0.075, 0.075, 0.2), (1440, 1440, 41), 8)
    found = {}
    for token, detections in truth.items():
        codes = encode_boxes(from_canonical(detections["boxes"].float(), convention), grid)
        parts = dict(
            zip(("center", "height", "dim", "rot", "vel"), codes.T[None].split([2, 1, 3, 2, 2], 1), strict=True)
        )
        peaks = nn.functional.one_hot(detections["labels"], len(CLASS_NAMES)).T[None] * detections["scores"].float()
        parts |= {"heatmap": torch.full_like(peaks, 2.0), "query_heatmap_score": peaks}
        parts["query_labels"] = detections["labels"][None]
        found[token] = decode_predictions(parts, grid=grid, convention=convention, post_center_range=POST_CENTER_RANGE)[
            0
        ]
    result = evaluate_detections(found, frames)
    assert_perfect(result)
    assert result.label_tp_errors["car"]["vel_err"] == pytest.approx(0, abs=2e-3)


def test_turned_boxes_are_off_by_the_turn(frames: NuScenesFrames, truth: Truth) -> None:
    errors = evaluate_detections(changed(truth, [6], math.pi - 0.2), frames).label_tp_errors
    assert errors["car"]["orient_err"] == pytest.approx(math.pi - 0.2, abs=1e-3)
    assert errors["pedestrian"]["orient_err"] == pytest.approx(math.pi - 0.2, abs=1e-3)
    assert errors["barrier"]["orient_err"] == pytest.approx(0.2, abs=1e-3)  # looks the same from both sides
    assert errors["car"]["scale_err"] == pytest.approx(0, abs=1e-9)


def test_swapped_length_and_width_are_a_scale_error(frames: NuScenesFrames, truth: Truth) -> None:
    found = {t: {**d, "boxes": d["boxes"][:, [0, 1, 2, 4, 3, 5, 6, 7, 8]]} for t, d in truth.items()}
    result = evaluate_detections(found, frames)
    assert result.label_tp_errors["car"]["scale_err"] == pytest.approx(1 - 1.9 / (2 * 4.6 - 1.9), abs=1e-9)
    assert result.mean_label_aps["car"] == pytest.approx(1)  # matched by centre


def test_boxes_a_metre_away_are_matched_from_two_metres_on(frames: NuScenesFrames, truth: Truth) -> None:
    result = evaluate_detections(changed(truth, [0], 1.001), frames)
    for name in TRUTH_IN_RANGE:
        assert result.label_tp_errors[name]["trans_err"] == pytest.approx(1.001, abs=1e-3)
        assert result.label_aps[name] == pytest.approx({0.5: 0.0, 1.0: 0.0, 2.0: 1.0, 4.0: 1.0})


def test_a_velocity_the_other_way_is_off_by_twice_the_speed(frames: NuScenesFrames, truth: Truth) -> None:
    errors = evaluate_detections(changed(truth, [7, 8], 0.0, scale=-1.0), frames).label_tp_errors["car"]
    assert errors["vel_err"] == pytest.approx(2 * 5**0.5, abs=2e-3)
    assert errors["attr_err"] == 0.0  # it still moves
    standing = evaluate_detections(changed(truth, [7, 8], 0.0, scale=0.0), frames).label_tp_errors["car"]
    assert standing["vel_err"] == pytest.approx(5**0.5, abs=2e-3)
    assert standing["attr_err"] == 1.0


def test_a_false_alarm_above_the_truth_costs_precision(frames: NuScenesFrames, truth: Truth) -> None:
    alarm = truth["sample-0"]["boxes"][:1].clone()
    alarm[:, 1] += 10
    sample = truth["sample-0"]
    truth["sample-0"] = {
        "boxes": torch.cat([sample["boxes"], alarm]),
        "scores": torch.cat([sample["scores"], torch.tensor([0.99], dtype=torch.float64)]),
        "labels": torch.cat([sample["labels"], torch.tensor([CAR])]),
    }
    aps = evaluate_detections(truth, frames).mean_label_aps
    assert 0.4 < aps["car"] < 0.8
    assert aps["pedestrian"] == pytest.approx(1)


def test_no_predictions_and_missing_classes_have_no_ap(frames: NuScenesFrames, truth: Truth, tmp_path: Path) -> None:
    result = evaluate_detections(none_of(truth), frames, folder=tmp_path)
    assert result.mean_ap == 0.0
    assert result.nd_score == 0.0
    assert set(result.tp_errors.values()) == {1.0}
    assert not any(json.loads((tmp_path / "results.json").read_text())["results"].values())
    cars = {t: {n: v[d["labels"] == CAR] for n, v in d.items()} for t, d in truth.items()}
    assert_perfect(evaluate_detections(cars, frames), classes=("car",))


def test_everything_out_of_range_has_no_ap(frames: NuScenesFrames, truth: Truth) -> None:
    trucks = {t: {n: v[d["labels"] == TRUCK] for n, v in d.items()} for t, d in truth.items()}
    assert all(len(d["labels"]) == 1 for d in trucks.values())
    assert evaluate_detections(trucks, frames).mean_ap == 0.0


def test_files_and_silence(
    frames: NuScenesFrames, truth: Truth, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = evaluate_detections(truth, frames, folder=tmp_path / "a" / "b", sensors=["camera"])
    assert capfd.readouterr() == ("", "")
    folder = tmp_path / "a" / "b"
    assert sorted(path.name for path in folder.iterdir()) == ["metrics_summary.json", "results.json"]
    summary = json.loads((folder / "metrics_summary.json").read_text())
    assert summary["mean_ap"] == result.mean_ap
    assert summary["meta"]["use_camera"]
    assert not summary["meta"]["use_lidar"]
    assert json.loads((folder / "results.json").read_text()) == to_results(truth, frames, sensors=["camera"])
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert document["label_aps"]["car"]["0.5"] == pytest.approx(1)
    assert document["label_tp_errors"]["barrier"]["attr_err"] is None


def test_an_official_split(tmp_path: Path) -> None:
    write_tiny_nuscenes(tmp_path / "tiny", scene="scene-0103")
    frames = NuScenesFrames(tmp_path / "tiny", split="mini_val")
    found = {s.token: {"boxes": s.boxes, "scores": scores(len(s.boxes)), "labels": s.labels} for s in frames}
    assert len(found) == SAMPLES
    assert_perfect(evaluate_detections(found, frames), classes=("car", "pedestrian"))
    with pytest.raises(DataError, match=r"cannot evaluate split val .*not compatible"):
        evaluate_detections(found, frames, "val")


def test_wrong_splits_and_samples_are_named(frames: NuScenesFrames, truth: Truth, root: Path) -> None:
    with pytest.raises(DataError, match=r"^no detections for 1 of 3 samples of split mine, the first sample-1;"):
        evaluate_detections({t: d for t, d in truth.items() if t != "sample-1"}, frames)
    with pytest.raises(DataError, match=r"^detections for 1 samples not in split mine, the first nowhere;"):
        evaluate_detections({**truth, "nowhere": truth["sample-0"]}, frames)
    with pytest.raises(DataError, match=r"split 'all'; name an official one"):
        evaluate_detections(truth, frames, "all")
    with pytest.raises(DataError, match=r"split 'none \(all scenes but val and test\)'"):
        evaluate_detections(truth, NuScenesFrames(root))
    with pytest.raises(DataError, match="split elsewhere has no sample"):
        evaluate_detections(truth, frames, "elsewhere")
    with pytest.raises(DataError, match="no sample nowhere with a LIDAR_TOP"):
        frames.lidar_to_global("nowhere")


def test_a_split_without_annotations_is_named(tmp_path: Path) -> None:
    write_tiny_nuscenes(tmp_path / "tiny", scene="scene-0103")
    tables = tmp_path / "tiny" / "v1.0-mini"
    annotations = json.loads((tables / "sample_annotation.json").read_text())
    kept = [record for record in annotations if record["instance_token"] == "instance-3"]  # the animal
    (tables / "sample_annotation.json").write_text(json.dumps(kept))
    frames = NuScenesFrames(tmp_path / "tiny", split="mini_val")
    found = {s.token: {"boxes": s.boxes, "scores": scores(0), "labels": s.labels} for s in frames}
    with pytest.raises(DataError, match="split mini_val has no annotated box of the ten classes"):
        evaluate_detections(found, frames)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("boxes", (1, 0), math.nan),
        ("boxes", (1, 4), 0.0),
        ("boxes", (1, 8), math.inf),
        ("scores", (1,), math.nan),
        ("labels", (1,), 10),
        ("labels", (1,), -1),
    ],
)
def test_boxes_that_cannot_be_used_are_named(
    frames: NuScenesFrames, truth: Truth, name: str, place: tuple[int, ...], value: float
) -> None:
    truth["sample-2"][name] = truth["sample-2"][name].clone()
    truth["sample-2"][name][place] = value
    with pytest.raises(DataError, match=r"^sample sample-2: detection 1, box .*\n?$"):
        evaluate_detections(truth, frames)
    with pytest.raises(DataError, match=r"sample sample-0: boxes \[3, 9\], scores \[3\], labels \[2\]"):
        evaluate_detections({**truth, "sample-0": {**truth["sample-0"], "labels": torch.tensor([0, 1])}}, frames)


def test_only_the_best_500_are_written(frames: NuScenesFrames, truth: Truth) -> None:
    count = 700
    values = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth["sample-0"] = {
        "boxes": truth["sample-0"]["boxes"][:1].repeat(count, 1),
        "scores": values,
        "labels": torch.zeros(count, dtype=torch.int64),
    }
    written = [box["detection_score"] for box in to_results(truth, frames)["results"]["sample-0"]]
    assert written == sorted(values.tolist(), reverse=True)[:500]
    evaluate_detections(truth, frames)


def test_attributes() -> None:
    moving = {name: attribute_of(name, 0.21) for name in CLASS_NAMES}
    still = {name: attribute_of(name, 0.2) for name in CLASS_NAMES}
    for name in ("car", "truck", "construction_vehicle", "trailer"):
        assert (moving[name], still[name]) == ("vehicle.moving", "vehicle.parked")
    assert (moving["bus"], still["bus"]) == ("vehicle.moving", "vehicle.stopped")
    for name in ("bicycle", "motorcycle"):
        assert (moving[name], still[name]) == ("cycle.with_rider", "cycle.without_rider")
    assert (moving["pedestrian"], still["pedestrian"]) == ("pedestrian.moving", "pedestrian.standing")
    for name in ("barrier", "traffic_cone"):
        assert (moving[name], still[name]) == ("", "")


@pytest.mark.parametrize("seed", range(5))
def test_nms_is_the_slow_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(120, 9, generator=generator, dtype=torch.float64) * 12
    points = torch.randint(0, 12, (120,), generator=generator) / 12  # with ties
    labels = torch.randint(0, 10, (120,), generator=generator)
    radii = {"car": 4.0, "pedestrian": 1.5, "traffic_cone": 0.0}
    order = sorted(range(120), key=lambda i: (-float(points[i]), i))
    expected: list[int] = []
    for i in order:
        radius = radii.get(CLASS_NAMES[int(labels[i])])
        rivals = [j for j in expected if labels[j] == labels[i]] if radius is not None else []
        if all(math.dist(boxes[i, :2].tolist(), boxes[j, :2].tolist()) > radius for j in rivals):
            expected.append(i)
    assert 80 < len(expected) < 120
    assert nms(boxes, points, labels, radii).tolist() == expected
    assert nms(boxes, points, labels, {}).tolist() == order
    boxes[:, :2] = torch.tensor([3.0, 4.0]) * torch.arange(120)[:, None]  # 5 m apart: on the radius is within it
    assert nms(boxes, points, torch.zeros(120, dtype=torch.int64), {"car": 5.0}).tolist() != order
    assert nms(boxes, points, torch.zeros(120, dtype=torch.int64), {"car": 4.999}).tolist() == order
    assert nms(boxes[:0], points[:0], labels[:0], radii).tolist() == []


@pytest.fixture(scope="module")
def tiny_model() -> nn.Module:
    return build("bevfusion-tiny")


@pytest.fixture(scope="module")
def batches(root: Path, tiny_model: nn.Module) -> list[Batch]:
    config = tiny_model.config
    options = PrepareOptions(config.camera.image_size, config.lidar.point_cloud_range)
    return list(in_order(NuScenesFrames(root, split="mine"), "tiny", batch_size=2, options=options))


def test_batches_in_order_cover_every_frame(root: Path, frames: NuScenesFrames) -> None:
    options = PrepareOptions((64, 176), (-4.0, -4.0, -5.0, 4.0, 4.0, 3.0))  # leaves no box
    batches = in_order(frames, "tiny", batch_size=2, options=options)
    assert [batch.tokens for batch in batches] == [["sample-0", "sample-1"], ["sample-2"]]
    assert not any(len(boxes) for batch in batches for boxes in batch.boxes)
    assert batches[0] is not batches[0]  # a validation set does not fit into memory
    with pytest.raises(DataError, match="batch size is 0"):
        in_order(frames, "tiny", batch_size=0, options=options)


def test_missing_files_are_found_before_the_first_batch(tmp_path: Path) -> None:
    write_tiny_nuscenes(tmp_path / "tiny")
    last = sorted((tmp_path / "tiny" / "samples" / "CAM_BACK").iterdir())[-1]
    last.unlink()
    with pytest.raises(DataError, match=last.name):
        in_order(NuScenesFrames(tmp_path / "tiny"), "tiny", batch_size=1, options=PrepareOptions((64, 176)))


def test_detect_gives_boxes_for_every_sample(
    frames: NuScenesFrames, batches: list[Batch], tiny_model: nn.Module
) -> None:
    tiny_model.train()
    frozen = next(module for module in tiny_model.modules() if isinstance(module, nn.BatchNorm2d))
    frozen.eval()
    modes = {name: module.training for name, module in tiny_model.named_modules()}
    state = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    calls: list[tuple[str, int, int]] = []
    recording: list[bool] = []
    hook = tiny_model.register_forward_hook(lambda *_: recording.append(torch.is_grad_enabled()))
    found = detect(tiny_model, batches, progress=lambda *call: calls.append(call))
    hook.remove()

    assert recording == [False, False]
    assert calls == [("detect", 0, 2), ("detect", 1, 2), ("detect", 2, 2)]
    assert {name: module.training for name, module in tiny_model.named_modules()} == modes
    assert all(torch.equal(value, state[name]) for name, value in tiny_model.state_dict().items())
    assert list(found) == [f"sample-{k}" for k in range(SAMPLES)]
    for detections in found.values():
        boxes, values, labels = detections["boxes"], detections["scores"], detections["labels"]
        assert 0 < len(boxes) <= tiny_model.config.head.num_proposals
        assert boxes.shape == (len(labels), 9)
        assert values.shape == labels.shape
        assert bool(torch.isfinite(boxes).all())
        assert bool((boxes[:, 3:6] > 0).all())
        assert bool(((values > 0) & (values <= 1)).all())
        assert labels.dtype == torch.int64
        assert set(labels.tolist()) <= set(range(10))
    result = evaluate_detections(found, frames)
    assert 0 <= result.mean_ap < 0.2
    assert 0 <= result.nd_score < 0.3


def test_detect_does_not_depend_on_the_batches(batches: list[Batch], root: Path, tiny_model: nn.Module) -> None:
    """Eval mode: a sample's boxes do not depend on its neighbours. An iterator without a length will do."""
    config = tiny_model.config
    options = PrepareOptions(config.camera.image_size, config.lidar.point_cloud_range)
    calls: list[tuple[str, int, int]] = []
    singles: Iterator[Batch] = iter(in_order(NuScenesFrames(root, split="mine"), "tiny", batch_size=1, options=options))
    alone = detect(tiny_model, singles, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("detect", 3, 3)
    for token, detections in detect(tiny_model, batches).items():
        torch.testing.assert_close(detections["boxes"], alone[token]["boxes"], rtol=1e-3, atol=1e-3)


def test_detect_with_nms_keeps_a_subset(batches: list[Batch], tiny_model: nn.Module) -> None:
    every, fewer = detect(tiny_model, batches), detect(tiny_model, batches, radii=dict.fromkeys(CLASS_NAMES, 5.0))
    for token, detections in fewer.items():
        kept = nms(*(every[token][name] for name in ("boxes", "scores", "labels")), dict.fromkeys(CLASS_NAMES, 5.0))
        assert 0 < len(kept) < len(every[token]["boxes"])
        assert torch.equal(detections["boxes"], every[token]["boxes"][kept])


def test_detect_refuses_augmented_and_nameless_samples(batches: list[Batch], tiny_model: nn.Module) -> None:
    tiny_model.train()
    turned = torch.eye(4).repeat(2, 1, 1)
    turned[1, 0, 3] = 0.5
    with pytest.raises(DataError, match="sample sample-1: its scene is augmented"):
        detect(tiny_model, [replace(batches[0], lidar_aug=turned)])
    with pytest.raises(DataError, match="sample sample-0 comes twice"):
        detect(tiny_model, [replace(batches[0], tokens=["sample-0", "sample-0"])])
    with pytest.raises(DataError, match="sample sample-2 comes twice"):
        detect(tiny_model, [batches[1], batches[1]])
    with pytest.raises(DataError, match="a batch of 2 samples has 0 tokens"):
        detect(tiny_model, [replace(batches[0], tokens=[])])
    assert tiny_model.training
