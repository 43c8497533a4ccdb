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

    `warmup` runs before are not counted. On CUDA the device is waited for around every module, which a run in earnest
    does not do: its whole is then a little faster.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    with _timed(modules, seconds, device), torch.no_grad():
        for done in range(warmup + rounds):
            start = _now(device)
            run()
            seconds[""].append(_now(device) - start)
            progress(done + 1)
            if done < warmup:
                seconds.clear()
    return {name: Times(tuple(values)) for name, values in seconds.items()}


@contextmanager
def _timed(modules: Mapping[str, nn.Module], seconds: dict[str, list[float]], device: torch.device) -> Iterator[None]:
    began: dict[str, float] = {}

    def before(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: began.__setitem__(name, _now(device))

    def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, inputs, output: seconds[name].append(_now(device) - began[name])

    handles = [module.register_forward_pre_hook(before(name)) for name, module in modules.items()]
    handles += [module.register_forward_hook(after(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory(run: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that `run` needs at once beside what there was before; None where the system does not tell (not Linux).

    On the CPU it is how far the process grows, with what its allocator keeps between two requests.
    """
    with torch.no_grad():
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            run()
            return torch.cuda.max_memory_allocated(device) - before
        try:
            return resident_growth(run)
        except (OSError, AttributeError):
            return None


def resident_growth(run: Callable[[], Any]) -> int:
    """Bytes by which the process grows, at its highest, while `run` works: the kernel's resettable high-water mark.

    Raises:
        OSError, AttributeError: not on Linux with glibc.
    """
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed must not hide what this one takes
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024
