"""A nuScenes results file that another program wrote, checked where the devkit would stop with a bare assertion."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastalter.data.batch import CLASS_NAMES
from fastalter.errors import DataError
from fastalter.tasks.detection.results import MAX_BOXES

NUMBERS = {"translation": 3, "size": 3, "rotation": 4, "velocity": 2}
"""Lists of numbers in a box, and their lengths."""


def read_results(path: Path) -> dict[str, Any]:
    """The document of a results file, {"meta": ..., "results": {sample token: [box, ...]}}.

    Raises:
        DataError: no such file, no JSON of this form, or a box that the devkit cannot use; names file, sample and box.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a results file in nuScenes' detection layout")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); write it again") from error
    for key in ("meta", "results"):
        if not isinstance(document, dict) or not isinstance(document.get(key), dict):
            raise DataError(f"{path}: no {key!r} object at the top; give a results file in nuScenes' detection layout")
    attributes = _attributes()
    for token, boxes in document["results"].items():
        if not isinstance(boxes, list) or len(boxes) > MAX_BOXES:
            what = f"{len(boxes)} boxes" if isinstance(boxes, list) else f"a {type(boxes).__name__}"
            raise DataError(f"{path}: sample {token} has {what}; give a list of at most {MAX_BOXES} boxes")
        for place, box in enumerate(boxes):
            if wrong := _wrong(box, token, attributes):
                raise DataError(f"{path}: sample {token}, box {place}: {wrong}")
    return dict(document)


def _attributes() -> set[str]:
    from nuscenes.eval.detection.constants import ATTRIBUTE_NAMES

    return {"", *ATTRIBUTE_NAMES}


def _wrong(box: Any, token: str, attributes: set[str]) -> str:
    """What is wrong with a box, or nothing."""
    if not isinstance(box, Mapping):
        return f"a {type(box).__name__}; give an object"
    if box.get("sample_token") != token:
        return f"its sample_token is {box.get('sample_token')!r}; list each box under its own sample"
    for name, length in NUMBERS.items():
        values = box.get(name)
        # A velocity may be NaN: nuScenes' own word for unknown.
        if not isinstance(values, list) or len(values) != length or not all(map(_number, values)):
            return f"{name} is {values!r}; give {length} numbers"
        if name != "velocity" and not all(map(math.isfinite, values)):
            return f"{name} is {values!r}; give finite numbers"
    if min(box["size"]) <= 0:
        return f"size is {box['size']}; give sizes above 0"
    if box.get("detection_name") not in CLASS_NAMES:
        return f"detection_name is {box.get('detection_name')!r}; give one of {', '.join(CLASS_NAMES)}"
    score = box.get("detection_score")
    if not isinstance(score, (int, float)) or isinstance(score, bool) or not math.isfinite(score):
        return f"detection_score is {score!r}; give a finite number"
    if box.get("attribute_name") not in attributes:
        return f"attribute_name is {box.get('attribute_name')!r}; give nuScenes' name of an attribute, or an empty one"
    return ""


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
