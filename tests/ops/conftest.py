"""Every op runs through both implementations; a missing C++ library fails the tests, it does not skip them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fastalter.ops import backends

BY_NAME = {backend.name: backend for backend in backends.BACKENDS}


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    reason = backends.load(BY_NAME["cpp"])
    assert reason is None, f"these tests are about the compiled library, and {reason}"


@pytest.fixture(params=["reference", "cpp"], scope="module")
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The implementation the wrappers are made to call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(backends.VARIABLE, request.param)
        yield request.param


@pytest.fixture
def threads() -> Iterator[Callable[[int], Any]]:
    """Sets torch's thread count; restores it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
