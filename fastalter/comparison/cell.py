"""A cell of the table: one method in one regime at one ratio with one seed. Each finished one is a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastalter.artifacts import atomic_path
from fastalter.comparison.study import Method, Regime, Study
from fastalter.errors import DataError

Result = dict[str, Any]
"""regime, method, settings, ratio, seed, key, before, after, kept, reached, seconds, provenance; see `run_cell`."""
FIELDS = ("regime", "method", "settings", "ratio", "seed", "key", "after", "seconds")


@dataclass(frozen=True)
class Cell:
    """One entry of the table."""

    regime: Regime
    method: Method
    ratio: float
    seed: int

    @property
    def name(self) -> str:
        """Its file below the results folder, without the ending."""
        return f"{self.regime.name}/{self.method.name}/{100 * self.ratio:g}-seed{self.seed}".replace(" ", "-")

    def key(self, study: Study) -> str:
        """Changes with anything that the numbers depend on: checkpoints, data, method, training, judge."""
        facts: dict[str, Any] = {
            "regime": self.regime.name,
            "origin": dict(self.regime.origin),
            "training": asdict(self.regime.options),
            "batch_size": self.regime.batch_size,
            "method": self.method.describe(),
            "ratio": self.ratio,
            "seed": self.seed,
            "data": study.data,
            "split": study.judge.frames.split,
            "settle": study.settle,
        }
        if self.regime.budget is not None:  # else left out, so that the keys of finished cells stay what they are
            facts["budget"] = self.regime.budget
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def read(self, results: Path, study: Study) -> Result | None:
        """The finished cell, or None where there is none or it was made from something else."""
        path = results / f"{self.name}.json"
        if not path.is_file():
            return None
        result = _read(path)
        return result if result["key"] == self.key(study) else None

    def write(self, results: Path, result: Result) -> Path:
        """Keep a finished cell."""
        path = results / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        return path


def read_results(results: Path) -> list[Result]:
    """All finished cells of a folder, in the order of their names.

    Raises:
        DataError: no such folder, no cell in it, or a file that is no cell.
    """
    found = list(_walk(results))
    if not found:
        raise DataError(f"{results}: no finished cell here; run the comparison first, or name its results folder")
    return found


def _walk(results: Path) -> Iterator[Result]:
    for path in sorted(results.rglob("*-seed*.json")):
        yield _read(path)


def _read(path: Path) -> Result:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable cell of a comparison ({error}); remove it and run again") from error
    missing = [name for name in FIELDS if not isinstance(result, dict) or name not in result]
    if missing:
        raise DataError(f"{path}: not a cell of a comparison (no {missing[0]}); remove it and run again")
    return dict(result)
