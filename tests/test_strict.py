"""A skip may not pass for a test: the hooks of conftest.py, on a small suite of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUITE = {
    "test_a.py": "import pytest\n\ndef test_tool():\n    pytest.skip('no g++')\n",
    "test_b.py": "import pytest\npytest.importorskip('nothing_of_this_name')\n",
    "test_c.py": "import pytest\n\ndef test_truth():\n    pytest.skip('FASTALTER_GROUND_TRUTH is not set')\n",
    "test_d.py": "import pytest\n\n@pytest.mark.gpu\ndef test_gpu():\n    raise AssertionError\n",
}


def run(folder: Path, **variables: str) -> str:
    for name, text in SUITE.items():
        (folder / name).write_text(text)
    (folder / "conftest.py").write_text("from tests.conftest import *\n")
    options = ["-q", "--continue-on-collection-errors", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder)]
    command = [sys.executable, "-m", "pytest", *options, str(folder)]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTALTER_")}
    clean |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""} | variables
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=clean).stdout


def test_only_a_missing_ground_truth_may_skip(tmp_path):
    output = run(tmp_path, FASTALTER_STRICT="1")
    assert "skipped under FASTALTER_STRICT" in output
    assert "no g++" in output
    assert "nothing_of_this_name" in output
    assert "1 skipped, 1 deselected" in output
    assert "1 gpu tests deselected: torch sees no CUDA device here" in output


def test_with_the_ground_truth_given_nothing_may_skip(tmp_path):
    assert "skipped," not in run(tmp_path, FASTALTER_STRICT="1", FASTALTER_GROUND_TRUTH=str(tmp_path))


def test_without_strict_a_skip_is_a_skip(tmp_path):
    assert "3 skipped, 1 deselected" in run(tmp_path)
