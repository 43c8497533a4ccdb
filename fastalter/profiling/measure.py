"""Wall time and peak memory of a forward pass."""

from __future__ import annotations

import ctypes
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Times:
    """Seconds of each round, in order."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds."""
        return median(self.rounds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, in seconds; 0 for a single round."""
        quarters = torch.tensor(self.rounds, dtype=torch.float64).quantile(torch.tensor([0.25, 0.75]).double())
        return float(quarters[1] - quarters[0]) / 2

    def plus(self, other: Times, sign: int = 1) -> Times:
        """The sum, round by round; with sign=-1 the difference, at least 0."""
        return Times(tuple(max(a + sign * b, 0.0) for a, b in zip(self.rounds, other.rounds, strict=True)))


def measure_times(
    run: Callable[[], Any],
    modules: Mapping[str, nn.Module],
    *,
    rounds: int,
    warmup: int,
    device: torch.device,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Times]:
    """Time of each module's forward within `run`, under its name, and of the whole run under "".

    A module that a run calls several times has their sum; one that is not called has no entry. `warmup` runs before are
    not counted. On CUDA the device is waited for around every module, which a run in earnest
    does not do: its whole is then a little faster.
    """
    seconds: dict[str, float] = defaultdict(float)
    every: list[dict[str, float]] = []
    with _timed(modules, seconds, device), torch.no_grad():
        for done in range(warmup + rounds):
            seconds.clear()
            start = _now(device)
            run()
            seconds[""] = _now(device) - start
            progress(done + 1)
            every.append(dict(seconds))
    return {name: Times(tuple(of[name] for of in every[warmup:])) for name in every[-1]}


@contextmanager
def _timed(modules: Mapping[str, nn.Module], seconds: dict[str, float], device: torch.device) -> Iterator[None]:
    began: dict[str, float] = {}

    def before(name: str) -> None:
        began[name] = _now(device)

    def after(name: str) -> None:
        seconds[name] += _now(device) - began[name]

    with _around(modules, before, after):
        yield


@contextmanager
def _around(
    modules: Mapping[str, nn.Module], before: Callable[[str], None], after: Callable[[str], None]
) -> Iterator[None]:
    """Call `before` and `after` with a module's name whenever its forward begins and ends."""
    handles = []
    for name, module in modules.items():
        handles.append(module.register_forward_pre_hook(lambda module, inputs, name=name: before(name)))
        handles.append(module.register_forward_hook(lambda module, inputs, output, name=name: after(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory(run: Callable[[], Any], modules: Mapping[str, nn.Module], device: torch.device) -> dict[str, int]:
    """Bytes beside what there was before `run`, at their highest while each module works, and under "" of the whole.

    So a module's own include what earlier ones left for later. On the CPU it is how far the process grows, with what
    its allocator keeps between two requests. The modules do not contain each other. Empty where the system does not
    tell (not Linux).
    """
    with torch.no_grad():
        try:
            meter = _CudaMeter(device) if device.type == "cuda" else _ResidentMeter()
        except (OSError, AttributeError):
            return {}
        highest: dict[str, int] = defaultdict(int)

        def note(*names: str) -> None:
            found = meter.highest()
            for name in ("", *names):
                highest[name] = max(highest[name], found)

        with _around(modules, lambda name: note(), note):
            run()
        note()
        return dict(highest)


class _ResidentMeter:
    """The process's memory, by the kernel's resettable high-water mark.

    Raises:
        OSError, AttributeError: not on Linux with glibc.
    """

    def __init__(self) -> None:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed must not hide what this one takes
        self._reset()
        self._before = _status("VmRSS")

    def highest(self) -> int:
        """Bytes above the start, at their highest since the last call."""
        found = _status("VmHWM") - self._before
        self._reset()
        return found

    def _reset(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")


class _CudaMeter:
    """The same of torch's allocator on a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        self._before = torch.cuda.memory_allocated(device)

    def highest(self) -> int:
        """Bytes above the start, at their highest since the last call."""
        found = torch.cuda.max_memory_allocated(self._device) - self._before
        torch.cuda.reset_peak_memory_stats(self._device)
        return found


def resident_growth(run: Callable[[], Any]) -> int:
    """Bytes by which the process grows, at its highest, while `run` works.

    Raises:
        OSError, AttributeError: not on Linux with glibc.
    """
    meter = _ResidentMeter()
    run()
    return meter.highest()


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024
