"""The strict interpreter as a fixture. Run this folder in a process of its own, with TRITON_INTERPRET=1."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.kernels.interpreted.strict import Strict


@pytest.fixture
def strict() -> Iterator[Strict]:
    """Every kernel launched in the test runs in the strict interpreter; `strict.seed` draws the grid order."""
    assert os.environ.get("TRITON_INTERPRET") == "1", "run this folder alone, with TRITON_INTERPRET=1"
    with Strict().installed() as installed:
        yield installed
