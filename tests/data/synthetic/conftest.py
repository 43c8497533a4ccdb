from __future__ import annotations

from pathlib import Path

import pytest

from fastalter.data.synthetic import SyntheticSettings
from fastalter.data.synthetic.dataset import write_dataset

SETTINGS = SyntheticSettings(scenes=2, val_scenes=1, samples=3, sweeps=1, seed=7)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of SETTINGS on disk."""
    root = tmp_path_factory.mktemp("synthetic") / "data"
    write_dataset(root, SETTINGS, workers=1)
    return root
