"""One worker's part: the cells that are missing, each claimed, run and written; others may work on the same folders."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.bulk import provenance
from fastalter.comparison import Cell, Study, Work, run_cell


def run_missing(cells: Iterable[Cell], study: Study, work: Path, results: Path, deadline: float) -> None:
    """Run every cell that `results` does not hold and nobody else has claimed; begin none after `deadline` (monotonic).

    Prints a line per finished cell.
    """
    for cell in cells:
        if time.monotonic() > deadline:
            return
        if cell.read(results, study) is not None:
            continue
        with claimed(work / "claims" / cell.name) as mine:
            if not mine or cell.read(results, study) is not None:
                continue
            start = time.perf_counter()
            result = run_cell(cell, study, Work(work))
            cell.write(results, {**result, "provenance": provenance()})
            after = result["after"]
            print(
                f"{time.strftime('%H:%M')} {cell.name}: mAP {after['mean_ap']:.3f}, NDS {after['nd_score']:.3f}, "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process may take the cell; a claim of a process that is gone does not count."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not _alive(path):
        path.unlink(missing_ok=True)
    try:
        with path.open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)


def _alive(path: Path) -> bool:
    try:
        os.kill(int(path.read_text() or 0), 0)
    except (OSError, ValueError):
        return False
    return True
