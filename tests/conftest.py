"""Hooks for every test: the GPU, Triton's interpreter, and what may be skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ground_truth import VARIABLE

_deselected_for_gpu = pytest.StashKey[int]()
INTERPRETED = Path(__file__).parent / "kernels" / "interpreted"
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Triton's interpreter and its compiler break each other in one process: each has a run of its own."""
    inside = collection_path.is_relative_to(INTERPRETED)
    return True if collection_path.suffix == ".py" and inside != INTERPRETING else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu and not torch.cuda.is_available():
        config.hook.pytest_deselected(items=gpu)
        items[:] = [item for item in items if item not in gpu]
        config.stash[_deselected_for_gpu] = len(gpu)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not INTERPRETING:
        run = "TRITON_INTERPRET=1 pytest tests/kernels/interpreted"
        terminalreporter.write_line(f"Triton's kernels under the interpreter are a run of their own: {run}")
    count = config.stash.get(_deselected_for_gpu, 0)
    if count:
        terminalreporter.write_line(f"{count} gpu tests deselected: torch sees no CUDA device here")


def _refuse_skip(report: Any) -> None:
    """Under FASTALTER_STRICT (make test) a skip is a failure, unless the ground truth was not given."""
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("FASTALTER_STRICT"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if VARIABLE not in reason or os.environ.get(VARIABLE):
            report.outcome = "failed"
            report.longrepr = f"skipped under FASTALTER_STRICT: {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    outcome: Any = yield
    _refuse_skip(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    outcome: Any = yield
    _refuse_skip(outcome.get_result())
