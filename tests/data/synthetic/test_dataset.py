"""The dataset on disk: for the devkit, for our loader, and bit for bit."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastalter.data import open_frames
from fastalter.data.sample import read_image
from fastalter.data.synthetic import SyntheticFrames
from fastalter.data.synthetic.__main__ import main
from fastalter.data.synthetic.dataset import write_dataset
from fastalter.data.synthetic.recording import JPEG_QUALITY
from fastalter.data.synthetic.rig import MOUNTS
from fastalter.errors import DataError
from tests.data.synthetic.conftest import SETTINGS


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_two_writings_are_equal_bit_for_bit_whatever_the_workers(dataset: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "again", SETTINGS, workers=2)
    assert digest(tmp_path / "again") == digest(dataset)
    write_dataset(tmp_path / "other", replace(SETTINGS, scenes=1, val_scenes=0, seed=8), workers=1)
    first = "samples/LIDAR_TOP"
    assert {(tmp_path / "other" / first).iterdir().__next__().read_bytes()} != {
        next(iter(sorted((dataset / first).iterdir()))).read_bytes()
    }


def test_the_devkit_loads_and_renders_it(dataset: Path, tmp_path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from nuscenes import NuScenes

    tables = NuScenes("v1.0-synthetic", str(dataset), verbose=False)
    assert len(tables.scene) == 3
    assert len(tables.sample) == 9
    assert {record["name"] for record in tables.category} >= {"vehicle.car", "human.pedestrian.adult"}
    for record in tables.sample_data:
        assert (dataset / record["filename"]).is_file()
        assert record["is_key_frame"] == record["filename"].startswith("samples/")
    for sample in tables.sample:
        for channel, mount in MOUNTS.items():
            early = sample["timestamp"] - tables.get("sample_data", sample["data"][channel])["timestamp"]
            assert early == pytest.approx(1e6 * mount.early, abs=1)
    scans = [r for r in tables.sample_data if r["fileformat"] == "pcd"]
    assert len(scans) == 3 * 5  # three keyframes and a sweep between each two
    for record in scans:  # a sweep belongs to the keyframe after it
        assert 0 <= tables.get("sample", record["sample_token"])["timestamp"] - record["timestamp"] < 500_000
    for annotation in tables.sample_annotation:
        instance = tables.get("instance", annotation["instance_token"])
        assert instance["nbr_annotations"] == SETTINGS.samples
        assert len(annotation["attribute_tokens"]) <= 1
    tables.render_sample(tables.sample[0]["token"], out_path=str(tmp_path / "sample.png"), verbose=False)
    tables.render_egoposes_on_map(log_location="synthetic", out_path=str(tmp_path / "map.png"))
    assert Image.open(tmp_path / "sample.png").size[0] > 500


def test_annotations_hold_the_points_they_say(dataset: Path) -> None:
    from nuscenes import NuScenes
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import points_in_box

    tables = NuScenes("v1.0-synthetic", str(dataset), verbose=False)
    said, found = [], []
    for sample in tables.sample:
        path, boxes, _ = tables.get_sample_data(sample["data"]["LIDAR_TOP"])
        points = LidarPointCloud.from_file(path).points[:3]
        for box in boxes:
            box.wlh = box.wlh + 0.2  # the range noise puts returns a little out of the box
            said.append(tables.get("sample_annotation", box.token)["num_lidar_pts"])
            found.append(int(points_in_box(box, points).sum()))
    assert sum(said) > 500
    # What a box holds beyond its own returns is ground under its edge.
    assert np.corrcoef(said, found)[0, 1] > 0.99
    assert np.mean([f >= 0.97 * s for s, f in zip(said, found, strict=True)]) > 0.97


def test_memory_and_disk_hold_the_same_samples(dataset: Path) -> None:
    for split, offset in (("synthetic_train", 0), ("synthetic_val", 6)):
        disk = open_frames(f"nuscenes:{dataset}:v1.0-synthetic:{split}", sweeps=2, keep_unseen=True)
        memory = SyntheticFrames(SETTINGS, sweeps=2, keep_unseen=True)
        assert len(disk) == (6 if offset == 0 else 3)
        for index in range(len(disk)):
            a, b = disk[index], memory[offset + index]
            torch.testing.assert_close(a.lidar2camera, b.lidar2camera, rtol=0, atol=1e-9)
            torch.testing.assert_close(a.intrinsics, b.intrinsics)
            torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=1e-6)
            assert torch.equal(a.labels, b.labels)
            assert len(a.sweeps) == len(b.sweeps) == min(3, 1 + 2 * (index % 3))
            for x, y in zip(a.sweeps, b.sweeps, strict=True):
                np.testing.assert_array_equal(np.fromfile(x.source, np.float32).reshape(-1, 5), y.source)
                np.testing.assert_allclose(x.to_key, y.to_key, atol=1e-9)
                assert x.lag == pytest.approx(y.lag, abs=1e-6)
            for camera in range(6):
                encoded = io.BytesIO()
                read_image(b, camera).save(encoded, "jpeg", quality=JPEG_QUALITY, subsampling=0)
                assert encoded.getvalue() == a.images[camera].read_bytes()


def test_boxes_without_returns_are_dropped_alike(dataset: Path) -> None:
    disk = open_frames(f"nuscenes:{dataset}:v1.0-synthetic:all")
    memory = SyntheticFrames(SETTINGS)
    counts = [(len(a.boxes), len(b.boxes)) for a, b in zip(disk, memory, strict=True)]
    assert all(a == b for a, b in counts)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made"
    arguments = [str(out), "--scenes", "1", "--val-scenes", "0", "--samples", "2", "--workers", "1"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert f"wrote {out}: 2 synthetic samples in 1 + 0 scenes, seed 0" in said
    assert "samples a second" in said
    frames = open_frames(said.split("--data ")[1].strip())
    assert len(frames) == 2
    assert json.loads((out / "v1.0-synthetic" / "splits.json").read_text())["synthetic_val"] == []
    assert main(arguments) == 2
    assert "is there already" in capsys.readouterr().err
    assert not list(tmp_path.glob(".made*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "1"], "samples is 1"),
        (["--image-size", "big"], "--image-size big"),
        (["--workers", "-1"], "workers is -1"),
    ],
)
def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main([str(tmp_path / "x"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastalter.data.synthetic.dataset.record_scene", refuse)
    with pytest.raises(DataError, match="No space left"):
        write_dataset(tmp_path / "x", replace(SETTINGS, scenes=1, val_scenes=0), workers=1)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="there is no folder"):
        write_dataset(tmp_path / "no" / "x", SETTINGS, workers=1)
