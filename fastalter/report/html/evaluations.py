"""Files that `fastalter.evaluate --out` keeps, as tables: a state's metrics_summary.json, or evaluation.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastalter.errors import DataError
from fastalter.report.evaluation import ERRORS
from fastalter.report.html.comparisons import read_json

WHAT = "evaluation.json or a metrics_summary.json that evaluate wrote"


@dataclass(frozen=True)
class StateRow:
    """The numbers with one sensor dropped ("none": with all); NaN where there is no such error."""

    state: str
    mean_ap: float
    nd_score: float
    errors: list[float]


@dataclass
class EvaluationTable:
    """All states of one network on one dataset."""

    title: str
    rows: list[StateRow] = field(default_factory=list)


def read_evaluations(paths: Sequence[Path]) -> list[EvaluationTable]:
    """One table per evaluation.json; states that come as files of their own stand together by their folder.

    Raises:
        DataError: a file that is not there, not JSON, or holds no numbers of an evaluation.
    """
    found: dict[str, EvaluationTable] = {}
    for path in paths:
        document = read_json(path, WHAT)
        if isinstance(document, dict) and isinstance(document.get("states"), dict):
            title = f"{path.parent}: {_facts(document)}"
            rows = [_row(path, str(state), numbers) for state, numbers in document["states"].items()]
        else:
            state, title = _whose(path)
            rows = [_row(path, state, document)]
        found.setdefault(title, EvaluationTable(title)).rows.extend(rows)
    return list(found.values())


def _facts(document: Mapping[str, Any]) -> str:
    what = str(document.get("model") or document.get("results") or "a model")
    frames = f", {document['frames']} frames" if "frames" in document else ""
    return f"{what} on {document.get('data', 'data not recorded')}{frames}"


def _whose(path: Path) -> tuple[str, str]:
    """(dropped sensor, title): from the state.json beside it, else from where it lies."""
    try:
        facts = json.loads((path.parent / "state.json").read_text(encoding="utf-8"))["facts"]
        return str(facts["drop"]), f"{path.parent.parent}: {facts['model']}, split {facts['split']}"
    except (OSError, ValueError, KeyError, TypeError):
        return path.parent.name or path.stem, f"{path.parent.parent}"


def _row(path: Path, state: str, numbers: Any) -> StateRow:
    try:
        errors = [_number(numbers["tp_errors"][name]) for name in ERRORS]
        row = StateRow(state, _number(numbers["mean_ap"]), _number(numbers["nd_score"]), errors)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: no numbers of an evaluation ({error!r}); give {WHAT}") from None
    if not (math.isfinite(row.mean_ap) and math.isfinite(row.nd_score)):
        raise DataError(f"{path}: mAP or NDS is not a number; evaluate again")
    return row


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
