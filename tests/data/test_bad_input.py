"""Data that is missing or damaged: one line that names the file, the sample and what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastalter.data import load
from fastalter.errors import DataError
from fastalter.models.config import BEVFusionConfig
from tests.data.tiny_nuscenes import SAMPLES

CONFIG = BEVFusionConfig().with_image_size(32, 64)
TABLES = "v1.0-mini"


def refused(spec: str, message: str, **options: Any) -> None:
    """Loading every batch of the specification ends in one line that holds the pattern."""
    arguments: dict[str, Any] = {"batches": SAMPLES, "batch_size": 1, **options}
    with pytest.raises(DataError, match=message) as caught:
        list(load(spec, config=CONFIG, **arguments))
    assert "\n" not in str(caught.value)


def first(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[0]


@pytest.mark.parametrize("spec", ["kitti:/somewhere", "/data/nuscenes", "frames", "frames:", ""])
def test_unknown_specification(spec: str) -> None:
    refused(spec, r"not understood; known: nuscenes:/path\[:version\[:split\]\], frames:DIR, synthetic, example")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": 0}, "batches is 0; it must be at least 1"),
        ({"batch_size": -1}, "batch size is -1"),
        ({"sweeps": -2}, "sweeps is -2; it must be at least 0"),
        ({"image_size": (60, 64)}, "image size 60x64: both must be positive multiples of 8"),
        ({"image_size": (0, 64)}, "image size 0x64"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    refused("example", message, **options)


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    refused(f"nuscenes:{tmp_path}/no", f"{tmp_path}/no: no such folder; give the nuScenes root")
    refused(f"nuscenes:{tmp_path}/no:v1.0-mini", f"{tmp_path}/no: no such folder")
    refused(f"frames:{tmp_path}/no", f"{tmp_path}/no: no info.json; expected")


def test_folder_without_tables(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    refused(f"nuscenes:{tmp_path}", r"no nuScenes tables; expected .*/v1\.0-mini .*sample_annotation.*samples/")


def test_some_tables_missing(own_tiny: Path) -> None:
    for name in ("sample_data", "map"):
        (own_tiny / TABLES / f"{name}.json").unlink()
    refused(f"nuscenes:{own_tiny}", rf"{own_tiny}/{TABLES}: missing tables map\.json, sample_data\.json")


def test_version_that_is_not_there(tiny: Path) -> None:
    refused(f"nuscenes:{tiny}:v1.0-test", r"no version 'v1\.0-test'; versions there: v1\.0-mini")
    refused(f"nuscenes:{tiny}:a:b:c", "too many parts after the path")


def test_tables_the_devkit_cannot_load(own_tiny: Path) -> None:
    (own_tiny / "maps" / "tiny.png").unlink()
    refused(f"nuscenes:{own_tiny}", "nuscenes-devkit cannot load the tables .*tiny.png")
    (own_tiny / TABLES / "sample.json").write_text("[{")
    refused(f"nuscenes:{own_tiny}", "nuscenes-devkit cannot load the tables .JSONDecodeError")


def test_no_annotations(own_tiny: Path) -> None:
    (own_tiny / TABLES / "sample_annotation.json").write_text("[]")
    refused(f"nuscenes:{own_tiny}", f"no box of a known class in range in any of {SAMPLES} frames.*sample-")


def test_sample_without_a_camera(own_tiny: Path) -> None:
    table = own_tiny / TABLES / "sample_data.json"
    records = [r for r in json.loads(table.read_text()) if "CAM_BACK-" not in r["token"]]
    table.write_text(json.dumps(records))
    refused(f"nuscenes:{own_tiny}", r"sample sample-\d has no CAM_BACK keyframe in sample_data")


@pytest.mark.parametrize("kind", ["nuscenes", "frames"])
@pytest.mark.parametrize("pattern", ["samples/CAM_BACK/*", "samples/LIDAR_TOP/*", "sweeps/LIDAR_TOP/*"])
def test_missing_sensor_file_is_found_before_the_first_batch(own_tiny: Path, kind: str, pattern: str) -> None:
    path = first(own_tiny, pattern)
    path.unlink()
    with pytest.raises(DataError, match=rf"{path}: sensor file of sample sample-\d is missing"):
        load(f"{kind}:{own_tiny}", config=CONFIG, batches=SAMPLES, batch_size=1, sweeps=6)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def with_nan(path: Path) -> None:
    scan = np.fromfile(path, dtype=np.float32)
    scan[[0, 1, 12]] = np.nan
    scan.tofile(path)


@pytest.mark.parametrize(
    ("pattern", "damage", "message"),
    [
        ("samples/CAM_FRONT/*", half, r"image of sample sample-\d cannot be decoded \(.*truncated"),
        ("samples/CAM_FRONT/*", emptied, r"image of sample sample-\d cannot be decoded"),
        ("samples/LIDAR_TOP/*", truncated, r"has \d+ bytes, which is not a whole number of points of 5 float32"),
        ("samples/LIDAR_TOP/*", emptied, "has 0 bytes"),
        ("samples/LIDAR_TOP/*", with_nan, r"sample sample-\d has NaN or Inf in 2 of \d+ points"),
    ],
)
def test_damaged_sensor_file(own_tiny: Path, pattern: str, damage: Callable[[Path], None], message: str) -> None:
    path = first(own_tiny, pattern)
    damage(path)
    refused(f"nuscenes:{own_tiny}", f"{path}: .*{message}")
    refused(f"frames:{own_tiny}", f"{path}: .*{message}")


def edit(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    info = json.loads((root / "info.json").read_text())
    change(info)
    (root / "info.json").write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info.pop("data_list"), "key data_list is missing or empty"),
        (lambda info: info["data_list"].clear(), "key data_list is missing or empty"),
        (lambda info: info["data_list"][1].pop("images"), "frame 1 lacks the key 'images'"),
        (lambda info: info["data_list"][0]["images"]["CAM_BACK"].pop("lidar2cam"), "frame 0 lacks the key 'lidar2cam'"),
        (lambda info: info["data_list"][2]["lidar_points"].clear(), "frame 2 lacks the key 'lidar_path'"),
        (lambda info: info["data_list"][0]["images"]["CAM_BACK"].update(cam2img=[[1, 2]]), r"frame 0 .*shape \(1, 2\)"),
        (
            lambda info: info["data_list"][0].update(instances=[{"bbox_label_3d": 0, "bbox_3d": [1, 2]}]),
            "frame 0 .*a box of 2 numbers",
        ),
    ],
)
def test_info_file_of_another_form(own_tiny: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    edit(own_tiny, change)
    refused(f"frames:{own_tiny}", rf"{own_tiny}/info\.json: .*{message}")


def test_info_file_that_is_not_json(own_tiny: Path) -> None:
    (own_tiny / "info.json").write_text("{")
    refused(f"frames:{own_tiny}", r"info\.json: not readable as JSON")
    (own_tiny / "info.json").write_text("[]")
    refused(f"frames:{own_tiny}", r"info\.json: holds a list; expected a JSON object")


def test_one_box_file_for_several_frames(own_tiny: Path) -> None:
    (own_tiny / "gt_boxes.json").write_text('{"boxes": []}')
    refused(f"frames:{own_tiny}", r"gt_boxes\.json: describes one frame, info\.json lists 3")
    edit(own_tiny, lambda info: info.update(data_list=info["data_list"][:1]))
    refused(f"frames:{own_tiny}", "no box of a known class in range in any of 1 frames")
    (own_tiny / "gt_boxes.json").write_text("{}")
    refused(f"frames:{own_tiny}", r"gt_boxes\.json: key boxes is missing")


def test_sweeps_the_info_file_does_not_have(own_tiny: Path) -> None:
    edit(own_tiny, lambda info: [frame.pop("lidar_sweeps") for frame in info["data_list"]])
    refused(f"frames:{own_tiny}", r"sample sample-\d has no lidar_sweeps, so 3 cannot be added", sweeps=3)


def test_devkit_is_imported_for_nuscenes_only() -> None:
    code = "import sys, fastalter.data, fastalter.data.nuscenes; sys.exit('nuscenes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
