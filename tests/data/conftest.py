from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.tiny_nuscenes import write_tiny_nuscenes
from tests.ground_truth import root


@pytest.fixture(scope="session")
def ground_truth() -> Path:
    """The ground-truth folder; skips, and says why, only when its variable is unset."""
    return root()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a tiny dataset that nobody may change."""
    folder = tmp_path_factory.mktemp("tiny") / "nuscenes"
    write_tiny_nuscenes(folder)
    return folder


@pytest.fixture
def own_tiny(tmp_path: Path) -> Path:
    """Root of a tiny dataset that a test may damage."""
    folder = tmp_path / "nuscenes"
    write_tiny_nuscenes(folder)
    return folder
