"""Hooks for every test: the ground truth, the GPU, and what may be skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

GROUND_TRUTH = "FASTALTER_GROUND_TRUTH"
_deselected_for_gpu = pytest.StashKey[int]()


@pytest.fixture(scope="session")
def ground_truth() -> Path:
    """The folder with manifests/, fixtures/ and data/."""
    folder = os.environ.get(GROUND_TRUTH)
    if not folder:
        pytest.skip(f"{GROUND_TRUTH} is not set: no reference fixtures to hold this against")
    return Path(folder)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu and not _cuda():
        config.hook.pytest_deselected(items=gpu)
        items[:] = [item for item in items if item not in gpu]
        config.stash[_deselected_for_gpu] = len(gpu)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    count = config.stash.get(_deselected_for_gpu, 0)
    if count:
        terminalreporter.write_line(f"{count} gpu tests deselected: torch sees no CUDA device here")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Under FASTALTER_STRICT (make test) a skip is a failure, unless the ground truth was not given."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("FASTALTER_STRICT"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if GROUND_TRUTH not in reason or os.environ.get(GROUND_TRUTH):
            report.outcome = "failed"
            report.longrepr = f"skipped under FASTALTER_STRICT: {reason}"


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
