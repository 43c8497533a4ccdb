"""The nuScenes loader against the official devkit and against what is true in the tiny dataset."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fastalter.data import load, open_frames
from fastalter.data.batch import CLASS_NAMES
from fastalter.data.draw import project
from fastalter.data.nuscenes import NuScenesFrames
from fastalter.data.sample import read_points
from fastalter.errors import DataError
from fastalter.models.config import BEVFusionConfig
from tests.data.tiny_nuscenes import CLOSE_POINTS, CLUTTER, KEY_STEP, LANDMARKS, SAMPLES, SCAN_STEP, write_tiny_nuscenes

CONFIG = BEVFusionConfig()
IMAGE_SIZE = (96, 192)
SCAN_POINTS = LANDMARKS + CLOSE_POINTS + CLUTTER


@pytest.fixture(scope="module")
def frames(tiny: Path) -> NuScenesFrames:
    return NuScenesFrames(tiny, sweeps=6, keep_unseen=True)


def test_boxes_equal_the_devkits(frames: NuScenesFrames) -> None:
    devkit = frames._tables
    for index in range(SAMPLES):
        sample = frames[index]
        lidar_token = devkit.get("sample", sample.token)["data"]["LIDAR_TOP"]
        _, boxes, _ = devkit.get_sample_data(lidar_token)
        known = [box for box in boxes if box.name != "animal"]
        assert len(known) == len(sample.boxes) >= 3
        for ours, theirs in zip(sample.boxes.numpy(), known, strict=True):
            np.testing.assert_allclose(ours[:3], theirs.center, atol=1e-9)
            np.testing.assert_allclose(ours[[4, 3, 5]], theirs.wlh, atol=1e-12)
            x_axis = theirs.orientation.rotation_matrix[:, 0]
            assert ours[6] == pytest.approx(np.arctan2(x_axis[1], x_axis[0]), abs=1e-9)


def test_labels_velocities_and_unseen_boxes(frames: NuScenesFrames, tiny: Path) -> None:
    names = [[CLASS_NAMES[label] for label in frames[index].labels] for index in range(SAMPLES)]
    assert names == [
        ["car", "barrier", "truck"],
        ["car", "pedestrian", "barrier", "truck"],
        ["car", "barrier", "truck"],
    ]
    car, pedestrian = frames[1].boxes[0], frames[1].boxes[1]
    assert float(car[7:].norm()) == pytest.approx(5**0.5, abs=1e-3)
    assert bool(pedestrian[7:].isnan().all())  # annotated once: no velocity
    seen = NuScenesFrames(tiny)[1]
    assert [CLASS_NAMES[label] for label in seen.labels] == ["car", "pedestrian", "truck"]


def test_a_missing_point_count_never_drops_a_box(own_tiny: Path) -> None:
    table = own_tiny / "v1.0-mini" / "sample_annotation.json"
    records = json.loads(table.read_text())
    for record in records:
        del record["num_lidar_pts"], record["num_radar_pts"]
    table.write_text(json.dumps(records))
    assert len(NuScenesFrames(own_tiny)[1].boxes) == 4


def test_landmarks_of_all_sweeps_meet_in_the_key_frame(frames: NuScenesFrames) -> None:
    points = read_points(frames[2])
    key = points[:LANDMARKS, :3]
    assert float((points[:SCAN_POINTS, 4]).abs().max()) == 0.0
    for number in range(1, 7):
        start = SCAN_POINTS + (number - 1) * (SCAN_POINTS - CLOSE_POINTS)
        scan = points[start : start + LANDMARKS]
        torch.testing.assert_close(scan[:, :3], key, atol=1e-4, rtol=0)
        torch.testing.assert_close(scan[:, 3], torch.arange(LANDMARKS).float())
        torch.testing.assert_close(scan[:, 4], torch.full((LANDMARKS,), number * SCAN_STEP * 1e-6))


def test_sweeps_lose_points_on_the_vehicle_and_end_at_the_scene_start(frames: NuScenesFrames, tiny: Path) -> None:
    assert len(read_points(frames[2])) == SCAN_POINTS + 6 * (SCAN_POINTS - CLOSE_POINTS)
    before = KEY_STEP // SCAN_STEP
    assert len(read_points(frames[1])) == SCAN_POINTS + before * (SCAN_POINTS - CLOSE_POINTS)
    assert len(read_points(frames[0])) == SCAN_POINTS
    single = read_points(NuScenesFrames(tiny)[2])
    assert len(single) == SCAN_POINTS
    assert float(single[:, 4].abs().max()) == 0.0  # not the ring index on disk


@pytest.mark.parametrize("seed", [0, 1])
def test_landmarks_land_on_their_dots_in_every_view(tiny: Path, seed: int) -> None:
    batches = load(
        f"nuscenes:{tiny}", config=CONFIG, batches=4, batch_size=SAMPLES, image_size=IMAGE_SIZE, sweeps=6, seed=seed
    )
    looked_at = 0
    for batch in batches:
        for index in range(SAMPLES):
            points = batch.points[index]
            marks = points[points[:, 3] < LANDMARKS]
            pixels, depths = project(batch, index, marks[:, :3])
            for camera in range(6):
                looked_at += _hits(batch.images[index, camera].mean(0), pixels[camera], depths[camera])
    assert looked_at > 300


def _hits(image: torch.Tensor, pixels: torch.Tensor, depths: torch.Tensor) -> int:
    """Check that each point well inside the image lies at the centre of a bright dot; how many there were."""
    height, width = image.shape
    checked = 0
    brightness = (image - image.min()) / (image.max() - image.min())
    for (u, v), depth in zip(pixels.tolist(), depths.tolist(), strict=True):
        if depth < 1 or not (8 < u < width - 8 and 8 < v < height - 8):
            continue
        column, row = int(u), int(v)
        window = brightness[row - 5 : row + 6, column - 5 : column + 6]
        if float(window.min()) == 0.0 and float(window.max()) < 0.2:  # rotated out of the original image: black
            continue
        weight = (window - 0.3).clamp(min=0).double()
        rows, columns = torch.meshgrid(
            torch.arange(-5, 6) + row + 0.5, torch.arange(-5, 6) + column + 0.5, indexing="ij"
        )
        centre = float((weight * columns).sum() / weight.sum()), float((weight * rows).sum() / weight.sum())
        assert centre == pytest.approx((u, v), abs=0.6)
        checked += 1
    return checked


def test_reads_no_sensor_file_until_a_batch_is_asked_for(own_tiny: Path) -> None:
    frames = NuScenesFrames(own_tiny, sweeps=2)
    for path in [*own_tiny.glob("samples/*/*"), *own_tiny.glob("sweeps/*/*")]:
        path.write_bytes(b"")
    assert len(frames) == SAMPLES
    assert frames[0].token == "sample-0"
    batches = load(f"nuscenes:{own_tiny}", config=CONFIG, batches=1, batch_size=1)
    with pytest.raises(DataError, match=r"sample-\d"):
        batches[0]


def test_version_and_split(tmp_path: Path) -> None:
    root = tmp_path / "with:colon"
    write_tiny_nuscenes(root, version="v1.0-trainval", scene="scene-0003")  # an official val scene
    with pytest.raises(DataError, match=r"no sample in split .*:v1\.0-trainval:all"):
        open_frames(f"nuscenes:{root}")
    assert len(open_frames(f"nuscenes:{root}:v1.0-trainval:all")) == SAMPLES
    assert len(open_frames(f"nuscenes:{root}:v1.0-trainval:val")) == SAMPLES
    (root / "v1.0-trainval" / "splits.json").write_text(json.dumps({"mine": ["scene-0003"]}))
    assert len(open_frames(f"nuscenes:{root}::mine")) == SAMPLES
    with pytest.raises(DataError, match=r"no split 'yours'; known: all, train, val"):
        open_frames(f"nuscenes:{root}:v1.0-trainval:yours")


def test_the_same_frames_from_an_info_file(tiny: Path) -> None:
    both = [open_frames(f"{kind}:{tiny}", sweeps=6) for kind in ("nuscenes", "frames")]
    assert len(both[0]) == len(both[1]) == SAMPLES
    for ours, info in zip(*both, strict=True):
        assert ours.token == info.token
        assert ours.images == info.images
        torch.testing.assert_close(ours.lidar2camera, info.lidar2camera)
        torch.testing.assert_close(ours.intrinsics, info.intrinsics)
        torch.testing.assert_close(read_points(ours), read_points(info), atol=1e-4, rtol=0)
        known = info.labels >= 0  # the animal
        assert int((~known).sum()) == 1
        assert info.labels[known].tolist() == ours.labels.tolist()
        torch.testing.assert_close(ours.boxes, info.boxes[known], atol=1e-6, rtol=0, equal_nan=True)
