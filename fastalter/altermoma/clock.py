"""Where a run's time went: seconds per stage, and how much of them the network itself took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Clock:
    """seconds[stage] in order of first use; network_seconds is the part inside forward and backward."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.network_seconds = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; stages of one name add up."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    @contextmanager
    def step(self, name: str, progress: Callable[[str, int, int], None]) -> Iterator[None]:
        """Time a stage of one step, and show its beginning and its end."""
        progress(name, 0, 1)
        with self.stage(name):
            yield
        progress(name, 1, 1)

    @contextmanager
    def network(self) -> Iterator[None]:
        """Time the network's own forward or backward."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.network_seconds += time.perf_counter() - began
