"""Finished cells as one JSON document: what the report draws and other tools read."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastalter.artifacts import atomic_path
from fastalter.comparison.cell import Result
from fastalter.comparison.study import DENSE

KIND = "fastalter comparison"


def document_of(results: Sequence[Result]) -> dict[str, Any]:
    """{"kind", "regimes", "dense": regime -> mean over seeds of the unpruned network, "cells": all others}."""
    dense = [result for result in results if result["method"] == DENSE.name]
    regimes = list(dict.fromkeys(result["regime"] for result in results))
    return {
        "kind": KIND,
        "regimes": regimes,
        "dense": {regime: _mean([r["after"] for r in dense if r["regime"] == regime]) for regime in regimes},
        "cells": [_cell(result) for result in results if result["method"] != DENSE.name],
    }


def write_document(path: str | os.PathLike[str], results: Sequence[Result]) -> Path:
    """Write the document whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(document_of(results), indent=1) + "\n", encoding="utf-8")
    return Path(path)


def _cell(result: Result) -> dict[str, Any]:
    kept = ("regime", "method", "settings", "ratio", "seed", "before", "after", "dropped", "kept", "seconds")
    return {name: result.get(name) for name in kept} | {"commit": result.get("provenance", {}).get("commit", "")}


def _mean(states: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    if not states:
        return None
    return {name: sum(state[name] for state in states) / len(states) for name in ("mean_ap", "nd_score")}
