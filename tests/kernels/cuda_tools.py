"""Tools of the tests of the CUDA kernels: nvcc with what its machine code says, NVRTC, and g++ with the host shim.

`facts` needs no GPU; bench/static.py tabulates it with what KERNELS says of each kernel.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastalter.ops import compaction, scoring
from tests.kernels import sass
from tests.kernels.sass import run

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
INCLUDE = CSRC / "include"
THREADS = 256  # of a block, in every kernel
TYPES = {"uint16_t": "t", "uint32_t": "j", "uint64_t": "m"}  # and their letters in mangled names


@dataclass(frozen=True)
class Kernel:
    """A kernel as the bindings launch it, and what its design promises.

    moved: bytes it moves over the least its algorithm can, and why; None where that depends on the input. in_flight:
    bytes of its larger stream (loads, or stores where they are more) that a thread requests at once. threads_per_sm:
    how many its registers must leave room for (where an SM holds so many).
    wide_loads, wide_stores: whether contiguous data goes 128 bits at a time.
    """

    op: str
    header: str
    name: str
    element: str  # the integer it moves; "" if it takes any
    moved: float | None
    why: str
    in_flight: int
    threads_per_sm: int = 1024
    wide_loads: bool = True
    wide_stores: bool = True

    @property
    def expression(self) -> str:
        return f"fastalter::{self.name}<{self.element}>"

    @property
    def form(self) -> str:
        return self.element or "any"


_LOOK_BACK = "; a tile of 16 KB adds 32 bytes of tickets and status words"
_FAMILIES: tuple[tuple[Any, ...], ...] = (
    (
        *("apply_mask", "apply_mask.cuh", "apply_mask_kernel", tuple(TYPES), 1.0),
        "one pass: every element is read and written once, every mask byte read once",
        *(16, 2048, True, True),
    ),
    (
        *("apply_mask", "apply_mask.cuh", "apply_mask_strided_kernel", tuple(TYPES), None),
        "one pass that writes only what is dropped, an element at a time: sectors moved depend on the strides",
        *(1, 1024, False, False),
    ),
    (
        *("compact_channels", "compact_channels.cuh", "compact_channels_kernel", ("",), 1.0),
        "one pass: every target byte is written once, every source sector with a kept element read once; the table "
        "(168 bytes a tensor) and the indices (8 bytes a channel) are read through the L1 cache",
        *(32, 1024, True, True),
    ),
    (
        *("pack_sparse", "pack_sparse.cuh", "pack_sparse_kernel", tuple(TYPES), 1.002),
        f"one pass: dense is read, mask and values are written once{_LOOK_BACK}. Values then move to a tensor of their "
        "own size: with a share d of nonzeros 1 + 3d of dense in all, against 2 + d with a counting pass",
        *(64, 1024, True, True),
    ),
    (
        *("unpack_sparse", "pack_sparse.cuh", "unpack_sparse_kernel", tuple(TYPES), 1.002),
        f"one pass: mask and values are read, dense is written once{_LOOK_BACK}",
        *(64, 1024, True, True),
    ),
    (
        *("compress_nm", "compress_nm.cuh", "compress_nm_kernel", ("uint16_t", "uint32_t"), 1.0),
        "one pass: dense is read, values and metadata are written once, in whole sectors",
        *(64, 1024, True, True),
    ),
)
KERNELS = tuple(
    Kernel(op, header, name, element, moved, why, in_flight, threads, loads, stores)
    for op, header, name, elements, moved, why, in_flight, threads, loads, stores in _FAMILIES
    for element in elements
)


# ---- nvcc and machine code ------------------------------------------------------------------------------------------


def find_nvcc() -> str:
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    assert nvcc, "no nvcc on the path: pip install nvidia-cuda-nvcc nvidia-cuda-runtime, or install the CUDA toolkit"
    return nvcc


def compile_cubin(folder: Path, arch: int, include: Path = INCLUDE) -> Path:
    """All KERNELS for one architecture; a warning, a spill among them, is an error."""
    source, cubin = folder / "kernels.cu", folder / f"sm_{arch}.cubin"
    source.write_text(_source())
    warnings = ["-Werror", "all-warnings", "-Xptxas", "-warn-spills,-warn-lmem-usage"]
    run(find_nvcc(), "-std=c++17", "-O3", *warnings, f"-arch=sm_{arch}", "-cubin", f"-I{include}", "-o", cubin, source)
    return cubin


def _source() -> str:
    """A translation unit that has every kernel compiled: taking a kernel's address is enough."""
    headers = sorted({kernel.header for kernel in KERNELS})
    lines = [f'#include "fastalter/{header}"' for header in headers]
    addresses = ", ".join(f"(const void*)&{kernel.expression}" for kernel in KERNELS)
    return (
        "\n".join(lines)
        + f"\nconst void* kernels() {{\n    static const void* all[] = {{{addresses}}};\n"
        + ("    return all;\n}\n")
    )


@functools.cache
def facts(arch: int) -> dict[str, dict[str, Any]]:
    """JSON-able facts per kernel (its expression) on one architecture, read off the machine code.

    shared (bytes a block) and `sass.figures`.
    """
    with tempfile.TemporaryDirectory() as folder:
        return read_cubin(compile_cubin(Path(folder), arch))


def read_cubin(cubin: Path) -> dict[str, dict[str, Any]]:
    code, usage = run(sass.TOOLS / "cuobjdump", "-sass", cubin), run(sass.TOOLS / "cuobjdump", "-res-usage", cubin)
    found = {}
    for kernel in KERNELS:
        of_kernel = section(usage, kernel)
        shared = {"shared": sass.used("SHARED", of_kernel)}
        found[kernel.expression] = shared | sass.figures(section(code, kernel), of_kernel)
    return found


def section(listing: str, kernel: Kernel) -> str:
    """The part of a cuobjdump listing that is about one kernel."""
    mangled = f"{len(kernel.name)}{kernel.name}I" + (TYPES[kernel.element] if kernel.element else "L")
    parts = re.split(r"^\s*Function\s*:?\s*", listing, flags=re.MULTILINE)
    found = [part for part in parts if mangled in part.split("\n", 1)[0]]
    assert len(found) == 1, f"{len(found)} functions in the machine code look like {kernel.expression}"
    return found[0]


# ---- NVRTC ----------------------------------------------------------------------------------------------------------

NVRTC_HINT = 'NVRTC 12 is missing: pip install "nvidia-cuda-nvrtc-cu12>=12.8" (the extra "cupy" brings it)'


@functools.cache
def nvrtc() -> ctypes.CDLL:
    """libnvrtc.so.12 of the pip wheel; torch's own is of CUDA 13, which CuPy for CUDA 12 does not use."""
    spec = importlib.util.find_spec("nvidia")
    places = [
        Path(place) / "cuda_nvrtc" / "lib" / "libnvrtc.so.12"
        for place in (spec and spec.submodule_search_locations) or ()
    ]
    found = next((place for place in places if place.exists()), None)
    assert found, NVRTC_HINT
    return ctypes.CDLL(str(found))


def compile_nvrtc(source: str, options: list[str], expressions: list[str]) -> tuple[bytes, dict[str, str]]:
    """The cubin and the kernels' names in it; the log if it fails, or if there is one: a warning is an error."""
    library, program = nvrtc(), ctypes.c_void_p()
    assert library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None) == 0
    try:
        for expression in expressions:
            assert library.nvrtcAddNameExpression(program, expression.encode()) == 0
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = library.nvrtcCompileProgram(program, len(options), array)
        log = _nvrtc_bytes(program, "ProgramLog").rstrip(b"\0").decode().strip()
        assert status == 0, log
        assert not log, log
        names = {}
        for expression in expressions:
            lowered = ctypes.c_char_p()
            assert library.nvrtcGetLoweredName(program, expression.encode(), ctypes.byref(lowered)) == 0
            assert lowered.value
            names[expression] = lowered.value.decode()
        return _nvrtc_bytes(program, "CUBIN"), names
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _nvrtc_bytes(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    assert getattr(nvrtc(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert getattr(nvrtc(), f"nvrtcGet{what}")(program, buffer) == 0
    return buffer.raw


# ---- the kernels on the host ----------------------------------------------------------------------------------------

SANITIZERS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
FLAGS = ("-std=c++20", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-pthread")


def find_gxx() -> str:
    gxx = shutil.which("g++")
    assert gxx, "no g++ on the path: apt-get install g++"
    return gxx


def precompile(folder: Path, sanitizer: str) -> Path:
    """on_host.h for one sanitizer; halves the time of every compilation after it."""
    target = folder / sanitizer / "on_host.h.gch"
    target.parent.mkdir(parents=True, exist_ok=True)
    header = HERE / "on_host.h"
    run(find_gxx(), *FLAGS, *SANITIZERS[sanitizer], f"-I{HERE}", "-x", "c++-header", header, "-o", target)
    return target.parent


def build_on_host(program: str, folder: Path, sanitizer: str, precompiled: Path, include: Path = INCLUDE) -> Path:
    target = folder / f"{program}_{sanitizer}"
    includes = (f"-I{precompiled}", f"-I{include}", f"-I{HERE}", "-include", "on_host.h")
    source = HERE / f"{program}_on_host.cpp"
    run(find_gxx(), *FLAGS, *SANITIZERS[sanitizer], *includes, source, "-o", target)
    return target


def run_on_host(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    first_report_ends_it = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run(
        [str(program), *arguments], env=first_report_ends_it, capture_output=True, text=True, timeout=280
    )


@dataclass(frozen=True)
class Bindings:
    """csrc/*.cu over a CUDA runtime that is the host (bindings_on_host.cpp)."""

    ops: Any  # the ops as the bindings implement them, on CPU tensors
    library: ctypes.CDLL

    def log(self) -> list[str]:
        """The launches since the last call: kernel, grid, integers, tables but for the targets' addresses."""
        return self.library.take_log().decode().splitlines()


@functools.cache
def bindings() -> Bindings:
    """Built once a session."""
    with tempfile.TemporaryDirectory() as folder:
        path = _build_bindings(Path(folder))
        definitions: Any = torch.library.Library("fastalter_on_host", "DEF")
        for op in ("apply_mask", *compaction.SCHEMAS):
            definitions.define(op + (compaction.SCHEMAS | scoring.SCHEMAS)[op])
        torch.ops.load_library(path)
        library = ctypes.CDLL(str(path))
    library.take_log.restype = ctypes.c_char_p
    library.definitions = definitions  # must live as long
    return Bindings(torch.ops.fastalter_on_host, library)


def _build_bindings(folder: Path) -> Path:
    (folder / "cuda_runtime.h").write_text("// The runtime is in bindings_on_host.cpp.\n")
    package, target = Path(torch.__file__).parent, folder / "libbindings_on_host.so"
    includes = [f"-I{folder}", f"-I{INCLUDE}", f"-I{HERE}", "-isystem", package / "include"]
    torch_flags = ["-DTORCH_TARGET_VERSION=0x020a000000000000", package / "lib" / "libtorch_cpu.so"]
    source = HERE / "bindings_on_host.cpp"
    alignment = ("-fsanitize=alignment", "-fno-sanitize-recover=all")  # a GPU faults where the host would not care
    run(find_gxx(), *FLAGS, *alignment, "-fPIC", "-shared", *includes, source, *torch_flags, "-o", target)
    return target
