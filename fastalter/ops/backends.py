"""Which implementation serves which device, and why the others do not.

Left alone, torch's dispatcher chooses by device: the compiled library where it has a kernel, the reference elsewhere. A
CUDA tensor is served on its own device, never through the CPU. FASTALTER_BACKEND=reference|cpp|triton|cuda|cupy asks
for one implementation by name and gets that one or a BackendError. Compiled libraries load on first use and are never
built here.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastalter.errors import BackendError
from fastalter.ops import reference

_torch_ops: Any = torch.ops  # untyped in torch
VARIABLE = "FASTALTER_BACKEND"
SCORING = ("indicator_sums", "alter_score", "kth_value", "make_mask", "apply_mask", "channel_sum")
FUSING = ("masked_fuse", "masked_fuse_sums", "masked_fuse_grad", "masked_fuse_norm", "masked_fuse_norm_backward")
LAYERS = tuple(f"masked_{layer}{part}" for layer in ("linear", "conv2d") for part in ("", "_dgrad", "_wgrad"))
COMPACTION = ("compact_channels", "pack_sparse", "unpack_sparse", "compress_nm")
CPP = SCORING + FUSING + COMPACTION
CUDA = ("apply_mask", *COMPACTION)
OPS = SCORING + FUSING + LAYERS + COMPACTION


@dataclass(frozen=True)
class Backend:
    """One way of running the ops: the device it is for, the ops it has, and where they come from.

    library   a compiled library, whose kernels torch's dispatcher calls
    launchers a Python module with a function launch_<op> per op, of the op's schema; needs: the package it stands on
    """

    name: str
    device: str | None  # None: any device
    ops: tuple[str, ...]
    library: str | None = None
    launchers: str | None = None
    needs: str | None = None


# Fastest first: of two that can serve a device, the dispatcher has the earlier one.
BACKENDS = (
    Backend("cpp", "cpu", CPP, library="libfastalter_cpu.so"),
    Backend("cuda", "cuda", CUDA, library="libfastalter_cuda.so"),
    Backend(
        "triton",
        "cuda",
        (*SCORING, "masked_fuse", "masked_fuse_grad", "masked_fuse_norm", "masked_fuse_norm_backward", *LAYERS),
        launchers="fastalter.triton_kernels",
        needs="triton",
    ),
    Backend("cupy", "cuda", ("apply_mask", *COMPACTION), launchers="fastalter.ops.cupy_kernels", needs="cupy"),
    Backend("reference", None, OPS),
)
BY_NAME = {backend.name: backend for backend in BACKENDS}
# Autograd goes through the dispatcher, so what Triton alone has for a GPU is registered there (schema.py).
DISPATCHED_TO_TRITON = tuple(op for op in BY_NAME["triton"].ops if op not in BY_NAME["cuda"].ops)


def library_path(backend: Backend) -> Path:
    """Where the build puts the backend's library: beside this file."""
    assert backend.library is not None
    return Path(__file__).with_name(backend.library)


@functools.cache
def load(backend: Backend) -> str | None:
    """Load the backend's compiled library, once. Returns None if what it needs is there, else why it is not."""
    if backend.needs is not None and importlib.util.find_spec(backend.needs) is None:
        return f"needs the package {backend.needs}, which is not installed"
    if backend.library is None:
        return None
    path = library_path(backend)
    if not path.exists():
        return f"{path.name} is not built: pip install --no-build-isolation . builds it"
    try:
        _torch_ops.load_library(path)
    except OSError as error:
        return f"{path.name} does not load: {str(error).splitlines()[0]}"
    return None


def obstacle(backend: Backend, op: str, device: str) -> str | None:
    """Why `backend` cannot run `op` on tensors of this device type; None if it can."""
    if op not in backend.ops:
        return f"has no {op}"
    if backend.device not in (None, device):
        return f"runs on {backend.device} tensors only"
    return load(backend)


def serving(op: str, device: str) -> Backend:
    """The backend whose implementation runs `op` on this device type. Raises BackendError if a forced one cannot."""
    forced = os.environ.get(VARIABLE, "")
    if forced:
        return _forced(forced, op, device)
    return next(backend for backend in BACKENDS if obstacle(backend, op, device) is None)


def implementation(op: str, device: torch.device) -> Callable[..., Any]:
    """What to call to run `op` on this device: the reference itself, a launcher, or the dispatcher's op."""
    backend = serving(op, device.type)
    if backend.name == "reference":
        chosen: Callable[..., Any] = getattr(reference, op)
    elif backend.launchers and not (backend.name == "triton" and op in DISPATCHED_TO_TRITON):
        chosen = launcher(backend, op)
    else:
        chosen = getattr(_torch_ops.fastalter, op).default
    return chosen


def launcher(backend: Backend, op: str) -> Callable[..., Any]:
    """The Python function that launches the backend's kernel; imported here, on first use."""
    assert backend.launchers is not None
    launch: Callable[..., Any] = getattr(importlib.import_module(backend.launchers), f"launch_{op}")
    return launch


def _forced(name: str, op: str, device: str) -> Backend:
    for backend in BACKENDS:
        if backend.name == name:
            reason = obstacle(backend, op, device)
            if reason is None:
                return backend
            raise BackendError(f"{VARIABLE}={name} cannot run {op} on {device}: {name} {reason}; unset {VARIABLE}")
    known = ", ".join(backend.name for backend in BACKENDS)
    raise BackendError(f"{VARIABLE}={name} names no implementation: choose one of {known}, or unset it")


def survey(device: str) -> dict[str, dict[str, str]]:
    """Per op: under "serves" the backend that runs it on this device type, and every other backend with its reason."""
    found: dict[str, dict[str, str]] = {}
    for op in OPS:
        try:
            chosen = serving(op, device).name
        except BackendError as error:
            found[op] = {"serves": f"none: {error}"}
            continue
        others = {backend.name: obstacle(backend, op, device) for backend in BACKENDS if backend.name != chosen}
        found[op] = {"serves": chosen} | {
            name: reason or f"able, but {chosen} goes first" for name, reason in others.items()
        }
    return found
