"""losses.csv and the TensorBoard scalars of a run."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, TextIO

from fastalter.artifacts import atomic_path

FIXED = ("step", "lr", "grad_norm", "seconds", "total")


class TrainLog:
    """One row per step in folder/losses.csv, every `every`-th step in folder/tensorboard.

    Both continue after `history`, the rows of the steps that the model in memory has made: what an earlier process
    wrote beyond them is dropped.
    """

    def __init__(self, folder: Path, history: list[dict[str, float]], every: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import, and only runs with a folder log

        self._path = folder / "losses.csv"
        self._every = every
        self._rows = list(history)
        self._file: TextIO | None = None
        self._rewrite()
        self._scalars: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=len(history))

    def add(self, row: dict[str, float]) -> None:
        """Append the row of one step: keys of `FIXED` and one per loss term."""
        self._rows.append(row)
        if not set(row) <= set(self._columns):
            self._rewrite()  # a term that no step had before: the header changes
        elif self._file:
            self._writer.writerow(row)
            self._file.flush()
        if row["step"] % self._every == 0:
            for name in row.keys() - {"step", "seconds"}:
                self._scalars.add_scalar(f"train/{name}", row[name], int(row["step"]))

    def close(self) -> None:
        if self._file:
            self._file.close()
        self._scalars.close()

    def _rewrite(self) -> None:
        self._columns = [*FIXED, *dict.fromkeys(key for row in self._rows for key in row if key not in FIXED)]
        if self._file:
            self._file.close()
        with atomic_path(self._path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._rows)
        self._file = open(self._path, "a", newline="")  # noqa: SIM115 - closed by close()
        self._writer = csv.DictWriter(self._file, self._columns)
