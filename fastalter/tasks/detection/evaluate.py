"""mAP, NDS and true-positive errors of detections, computed by the official nuScenes devkit."""

from __future__ import annotations

import io
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastalter.artifacts import atomic_path
from fastalter.data.nuscenes import NuScenesFrames
from fastalter.errors import DataError
from fastalter.tasks.detection.results import Detections, to_results
from fastalter.tasks.detection.results_file import read_results

CONFIG = "detection_cvpr_2019"
FAR_AWAY = 1e6
"""Metres; beyond every class's range."""


@dataclass(frozen=True)
class DetectionResult:
    """The devkit's numbers; classes by name, distance thresholds in metres.

    mean_ap           mean of `mean_label_aps` over all ten classes
    nd_score          nuScenes detection score
    tp_errors         trans_err (m), scale_err (1 - IoU), orient_err (rad), vel_err (m/s), attr_err (1 - accuracy):
                      means over the classes that have that error
    label_aps         class -> threshold -> AP
    mean_label_aps    class -> mean over the thresholds
    label_tp_errors   class -> error -> value; NaN where the class has no such error (barriers have no attribute)
    seconds           wall time of the evaluation

    A class without ground truth in range or without a match counts as AP 0 and as 1 in every error, so on a split that
    lacks classes even a perfect detector has no mAP of 1.
    """

    mean_ap: float
    nd_score: float
    tp_errors: dict[str, float]
    label_aps: dict[str, dict[float, float]]
    mean_label_aps: dict[str, float]
    label_tp_errors: dict[str, dict[str, float]]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain form ready for JSON: thresholds as strings, NaN as None."""
        return _plain(asdict(self))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DetectionResult:
        """What `to_dict` wrote, also after a round through JSON. Raises DataError for anything else."""
        try:
            return cls(
                mean_ap=float(values["mean_ap"]),
                nd_score=float(values["nd_score"]),
                tp_errors=_restored(values["tp_errors"]),
                label_aps={
                    name: {float(key): float(ap) for key, ap in aps.items()}
                    for name, aps in values["label_aps"].items()
                },
                mean_label_aps=_restored(values["mean_label_aps"]),
                label_tp_errors={name: _restored(errors) for name, errors in values["label_tp_errors"].items()},
                seconds=float(values["seconds"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"not the numbers of an evaluation ({error!r}); evaluate again") from error


def evaluate_detections(
    detections: Mapping[str, Detections],
    frames: NuScenesFrames,
    split: str | None = None,
    folder: Path | None = None,
    sensors: Sequence[str] = ("camera", "lidar"),
) -> DetectionResult:
    """The official detection metrics of detections for every sample of a split.

    split     an official split or one of the version's splits.json; the frames' own by default
    folder    where results.json and metrics_summary.json go, in the official layouts; None keeps neither
    sensors   what the model saw, for the results' meta entry

    Raises DataError for a split the devkit does not know or cannot evaluate, a split without annotations, samples that
    are missing or not in the split, and boxes that cannot be used.
    """
    split = split or frames.split
    _check_tokens(detections, check_split(frames, split), split)
    return _evaluate(to_results(detections, frames, sensors), frames, split, folder)


def evaluate_results(
    path: Path, frames: NuScenesFrames, split: str | None = None, folder: Path | None = None
) -> DetectionResult:
    """The official detection metrics of a results file in the official layout, as another program wrote it.

    Raises DataError as `evaluate_detections` does, and for a file that is none; each names the file or the split.
    """
    split = split or frames.split
    tokens = check_split(frames, split)
    document = read_results(path)
    try:
        _check_tokens(document["results"], tokens, split)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return _evaluate(document, frames, split, folder)


def check_split(frames: NuScenesFrames, split: str | None = None) -> list[str]:
    """Sample tokens of a split (the frames' own by default) that the official metric can run on.

    Raises DataError for a split that the devkit does not know, or one without a sample or an annotated box.
    """
    split = split or frames.split
    tokens = _tokens_of(frames, split)
    _require_annotations(frames, tokens, split)
    return tokens


def _evaluate(
    document: Mapping[str, Any], frames: NuScenesFrames, split: str | None, folder: Path | None
) -> DetectionResult:
    """The devkit on a results document that is known to be whole."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        place = folder or Path(scratch)
        _make_folder(place)
        _write_json(place / "results.json", document)
        source = place / "results.json"
        if not any(document["results"].values()):
            source = Path(scratch) / "stand_in.json"
            _write_json(source, _with_stand_in(document))
        metrics = _run_devkit(frames, split, source, scratch)
        _write_json(place / "metrics_summary.json", {**metrics.serialize(), "meta": document["meta"]}, indent=2)
    return _result(metrics, time.perf_counter() - start)


def _run_devkit(frames: NuScenesFrames, split: str | None, source: Path, scratch: str) -> Any:
    """The devkit's DetectionMetrics. It always draws a progress bar on stderr, which is caught here."""
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval

    try:
        with redirect_stderr(io.StringIO()):
            run = DetectionEval(frames.tables, config_factory(CONFIG), str(source), split, scratch, verbose=False)
            return run.evaluate()[0]
    except Exception as error:  # the devkit asserts, and raises bare Exception, on anything it does not like
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"{frames.root}/{frames.version}: nuscenes-devkit cannot evaluate split {split} ({reason}); "
            "check that the split belongs to this version"
        ) from error


def _check_tokens(detections: Mapping[str, Any], expected: list[str], split: str | None) -> None:
    """The devkit answers strange samples with a bare assertion, or, for custom splits, drops them in silence."""
    if missing := [token for token in expected if token not in detections]:
        raise DataError(
            f"no detections for {len(missing)} of {len(expected)} samples of split {split}, the first {missing[0]}; "
            "run the model on the whole split (a sample where it finds no box has an empty entry)"
        )
    if strange := sorted(set(detections).difference(expected)):
        raise DataError(
            f"detections for {len(strange)} samples not in split {split}, the first {strange[0]}; leave them out"
        )


def _tokens_of(frames: NuScenesFrames, split: str | None) -> list[str]:
    """Sample tokens of a split as the devkit sees it."""
    from nuscenes.utils.splits import get_scenes_of_split

    place = f"{frames.root}/{frames.version}"
    try:
        scenes = set(get_scenes_of_split(split, frames.tables))
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"{place}: the devkit cannot evaluate on split {split or 'none (all scenes but val and test)'!r}; name an "
            f"official one (val, mini_val, ...) or list scenes under a name in {place}/splits.json"
        ) from error
    by_token = {scene["token"]: scene["name"] for scene in frames.tables.scene}
    tokens = [record["token"] for record in frames.tables.sample if by_token[record["scene_token"]] in scenes]
    if not tokens:
        raise DataError(f"{place}: split {split} has no sample in this version; name another version or split")
    return tokens


def _require_annotations(frames: NuScenesFrames, tokens: list[str], split: str | None) -> None:
    """Without a single annotated box of the ten classes there is nothing to compare with, and the devkit crashes."""
    from nuscenes.eval.detection.utils import category_to_detection_name

    annotations = (token for sample in tokens for token in frames.tables.get("sample", sample)["anns"])
    names = (frames.tables.get("sample_annotation", token)["category_name"] for token in annotations)
    if not any(category_to_detection_name(name) for name in names):
        raise DataError(
            f"{frames.root}/{frames.version}: split {split} has no annotated box of the ten classes; name another split"
        )


def _with_stand_in(document: Mapping[str, Any]) -> dict[str, Any]:
    """The same results and one box out of range: without any box the devkit crashes, and this one it drops."""
    token = next(iter(document["results"]))
    box = {
        "sample_token": token,
        "translation": [FAR_AWAY, FAR_AWAY, 0.0],
        "size": [1.0, 1.0, 1.0],
        "rotation": [1.0, 0.0, 0.0, 0.0],
        "velocity": [0.0, 0.0],
        "detection_name": "car",
        "detection_score": 0.0,
        "attribute_name": "",
    }
    return {**document, "results": {**document["results"], token: [box]}}


def _result(metrics: Any, seconds: float) -> DetectionResult:
    values = metrics.serialize()
    return DetectionResult(
        mean_ap=float(metrics.mean_ap),
        nd_score=float(metrics.nd_score),
        tp_errors=_floats(values["tp_errors"]),
        label_aps={name: _floats(aps) for name, aps in values["label_aps"].items()},
        mean_label_aps=_floats(values["mean_dist_aps"]),
        label_tp_errors={name: _floats(errors) for name, errors in values["label_tp_errors"].items()},
        seconds=seconds,
    )


def _floats(values: Mapping[Any, Any]) -> dict[Any, float]:
    """A plain dictionary of plain floats: the devkit mixes in defaultdicts and NumPy's."""
    return {key: float(value) for key, value in values.items()}


def _restored(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be a folder for results ({error.strerror}); name another") from error


def _write_json(path: Path, document: Mapping[str, Any], indent: int | None = None) -> None:
    # dumps and not dump: only the former has an encoder in C, which a results file of many boxes is worth.
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(document, indent=indent), encoding="utf-8")
