"""Finished states of an evaluation on disk, so that a call with the same files goes on where an earlier one stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastalter.artifacts import atomic_path, sha256
from fastalter.errors import DataError
from fastalter.tasks.detection.evaluate import DetectionResult, check_split
from fastalter.version import __version__

if TYPE_CHECKING:
    from fastalter.data.nuscenes import NuScenesFrames

STATE = "state.json"
"""Written last, beside results.json and metrics_summary.json: a folder with it is finished."""
LEFT_OUT = ("data", "frames")
"""Facts in words, which the fingerprint of the data stands for: a dataset may be moved."""


def facts_of(facts: Mapping[str, Any], frames: NuScenesFrames, state: str) -> dict[str, Any]:
    """All that the numbers of a state depend on; the checkpoint by its SHA-256, the data by a fingerprint."""
    known = {name: value for name, value in facts.items() if name not in LEFT_OUT}
    known["checkpoint"] = facts["checkpoint"]["sha256"]
    return {**known, "data": fingerprint(frames), "drop": state, "fastalter_version": __version__}


def fingerprint(frames: NuScenesFrames) -> str:
    """SHA-256 over the split's sample tokens and the tables' names and sizes: cheap, and other data has another."""
    digest = hashlib.sha256()
    for token in check_split(frames):
        digest.update(token.encode())
    for table in sorted((frames.root / frames.version).glob("*.json")):
        digest.update(f"{table.name} {table.stat().st_size} ".encode())
    return digest.hexdigest()


def read_state(folder: Path, facts: Mapping[str, Any]) -> DetectionResult | None:
    """The numbers kept in a folder if they were made from the same facts and its results.json is whole, else None."""
    try:
        kept = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if kept["facts"] != json.loads(json.dumps(facts)) or kept["results"] != sha256(folder / "results.json"):
            return None
        return DetectionResult.from_dict(kept["numbers"]) if (folder / "metrics_summary.json").is_file() else None
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None


def write_state(folder: Path, facts: Mapping[str, Any], result: DetectionResult) -> None:
    """Mark a state finished."""
    document = {"facts": facts, "numbers": result.to_dict(), "results": sha256(folder / "results.json")}
    _write(folder / STATE, document)


def write_evaluation(path: Path, document: Mapping[str, Any]) -> Path:
    """All states in one file; its path."""
    _write(path, document)
    return path


def make_folder(folder: Path) -> None:
    """Raises DataError where the system refuses."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made ({error.strerror}); name another folder") from error


def _write(path: Path, document: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
