from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastalter.models import build


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the tiny model with random weights, as a user's training would leave it."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    torch.save({"meta": {"epoch": 3}, "state_dict": build("bevfusion-tiny", seed=1).state_dict()}, path)
    return path
