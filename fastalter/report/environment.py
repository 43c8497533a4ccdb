"""What fastalter runs on: versions, devices, compiled libraries, and which implementation serves each op, and why."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fastalter.ops import backends
from fastalter.version import __version__

PACKAGES = ("torch", "triton", "numpy", "spconv-cu120", "nuscenes-devkit", "cupy-cuda12x", "safetensors")


def gather() -> dict[str, Any]:
    """All of it as one JSON-able dict."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": {"fastalter": __version__, "python": platform.python_version()}
        | {name: _version(name) for name in PACKAGES},
        "devices": {"cpu": f"{_cpu_name()}, {torch.get_num_threads()} threads", "cuda": gpus or "torch sees no device"},
        "libraries": {b.library: backends.load(b) or "loaded" for b in backends.BACKENDS if b.library},
        "forced": os.environ.get(backends.VARIABLE) or None,
        "ops": {device: backends.survey(device) for device in ("cpu", "cuda")},
    }


def show(facts: dict[str, Any], *, as_json: bool) -> None:
    """Print the facts as tables, or as one JSON object."""
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for title in ("versions", "devices", "libraries"):
        table = Table("", title, box=None)
        for name, value in facts[title].items():
            table.add_row(name, value if isinstance(value, str) else ", ".join(value))
        console.print(table)
    for device, ops in facts["ops"].items():
        table = Table("op", "served by", "why not the others", title=f"{device} tensors", title_justify="left")
        for op, row in ops.items():
            reasons = [f"{name}: {reason}" for name, reason in row.items() if name != "serves"]
            table.add_row(op, row["serves"], "; ".join(reasons))
        console.print(table)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
