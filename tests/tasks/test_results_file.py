"""Results files of other programs: whole ones are read, the rest is refused with file, sample and box."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastalter.errors import DataError
from fastalter.tasks.detection.results_file import read_results

TOKEN = "a" * 32


def box(**changes: Any) -> dict[str, Any]:
    plain = {
        "sample_token": TOKEN,
        "translation": [1.0, 2.0, 3],
        "size": [1.0, 2.0, 3.0],
        "rotation": [1.0, 0.0, 0.0, 0.0],
        "velocity": [0.0, float("nan")],
        "detection_name": "car",
        "detection_score": 0.5,
        "attribute_name": "vehicle.moving",
    }
    return {**plain, **changes}


def file(folder: Path, boxes: Any) -> Path:
    path = folder / "results.json"
    path.write_text(json.dumps({"meta": {"use_lidar": True}, "results": {TOKEN: boxes}}))
    return path


def test_a_whole_file_is_read_as_it_is(tmp_path: Path) -> None:
    boxes = [box(velocity=[0.0, 1.0]), box(attribute_name="", detection_name="barrier", velocity=[0.0, 0.5])]
    found = read_results(file(tmp_path, boxes))
    assert found == {"meta": {"use_lidar": True}, "results": {TOKEN: boxes}}
    assert read_results(file(tmp_path, []))["results"] == {TOKEN: []}
    read_results(file(tmp_path, [box()]))  # an unknown velocity


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"translation": [1.0, 2.0]}, r"translation is \[1\.0, 2\.0\]; give 3 numbers"),
        ({"translation": [1.0, 2.0, float("nan")]}, "translation is .*; give finite numbers"),
        ({"size": [1.0, 0.0, 1.0]}, r"size is \[1\.0, 0\.0, 1\.0\]; give sizes above 0"),
        ({"rotation": None}, "rotation is None; give 4 numbers"),
        ({"velocity": ["0", "0"]}, r"velocity is \['0', '0'\]; give 2 numbers"),
        ({"detection_name": "tram"}, "detection_name is 'tram'; give one of car, truck, "),
        ({"detection_score": float("inf")}, "detection_score is inf; give a finite number"),
        ({"detection_score": True}, "detection_score is True"),
        ({"attribute_name": "flying"}, "attribute_name is 'flying'"),
        ({"sample_token": "b"}, "its sample_token is 'b'; list each box under its own sample"),
    ],
)
def test_a_box_that_the_devkit_cannot_use_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"results\.json: sample {TOKEN}, box 1: {message}"):
        read_results(file(tmp_path, [box(), box(**change)]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable as JSON"),
        ("[]", "no 'meta' object"),
        ('{"meta": {}}', "no 'results' object"),
        ('{"meta": {}, "results": []}', "no 'results' object"),
        ('{"meta": {}, "results": {"t": 3}}', "sample t has a int"),
        ('{"meta": {}, "results": {"t": [7]}}', "sample t, box 0: a int; give an object"),
        ('{"meta": {}, "results": {"t": [' + ",".join(["{}"] * 501) + "]}}", "sample t has 501 boxes; .* at most 500"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"results\.json: {message}") as caught:
        read_results(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.json: no such file"):
        read_results(tmp_path / "gone.json")
