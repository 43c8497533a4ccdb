"""nvcc compiles the CUDA kernels without a warning, to the machine code they were written for."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import triton

INCLUDE = Path(__file__).parents[2] / "csrc" / "include"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"  # the triton wheel brings cuobjdump and nvdisasm
REGISTERS = 65536  # of an SM
THREADS = {"sm_80": 2048, "sm_86": 1536, "sm_89": 1536, "sm_90": 2048, "sm_100": 2048, "sm_120": 1536}  # an SM's most

SOURCE = """
#include "fastalter/apply_mask.cuh"
template __global__ void fastalter::apply_mask_kernel({dtype}*, const uint8_t*, int64_t, int64_t);
template __global__ void fastalter::apply_mask_strided_kernel({dtype}*, Geometry, const uint8_t*, int64_t, int64_t);
"""


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def section(listing: str, kernel: str) -> str:
    """The part of cuobjdump's listing that is about one kernel."""
    parts = re.split(r"^\s*Function\s*:?\s*", listing, flags=re.MULTILINE)
    return next(part for part in parts if f"{len(kernel)}{kernel}I" in part.split("\n", 1)[0])


@pytest.mark.parametrize("dtype", ["float", "double"])
@pytest.mark.parametrize("arch", THREADS)
def test_apply_mask_moves_128_bits_at_a_time_and_spills_nothing(tmp_path: Path, arch: str, dtype: str) -> None:
    nvcc = shutil.which("nvcc")
    assert nvcc, "this test is about nvcc, and there is none on the path"
    source, cubin = tmp_path / "kernel.cu", tmp_path / "kernel.cubin"
    source.write_text(SOURCE.format(dtype=dtype))
    warnings = ["-Werror", "all-warnings", "-Xptxas", "-v,-warn-spills"]
    run(nvcc, "-std=c++17", "-O3", *warnings, f"-arch={arch}", "-cubin", f"-I{INCLUDE}", "-o", cubin, source)

    sass = run(TOOLS / "cuobjdump", "-sass", cubin)
    usage = run(TOOLS / "cuobjdump", "-res-usage", cubin)
    for kernel in ("apply_mask_kernel", "apply_mask_strided_kernel"):
        assert not re.findall(r"\b(LDL|STL)\b", section(sass, kernel)), f"{kernel} spills"
        assert re.search(r"STACK:0\b", section(usage, kernel)), f"{kernel} uses a stack"
    assert int(re.search(r"REG:(\d+)", section(usage, "apply_mask_kernel"))[1]) * THREADS[arch] <= REGISTERS
    packs = section(sass, "apply_mask_kernel")
    assert "LDG.E.128" in packs
    assert "STG.E.128" in packs
