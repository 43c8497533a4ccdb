"""The CUDA kernels run on the host under sanitizers; planted bugs show that these would be caught."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INCLUDE = HERE.parents[1] / "csrc" / "include"
KERNEL = "apply_mask.cuh"
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}


def run_on_host(folder: Path, kernel: str, sanitizer: str) -> subprocess.CompletedProcess[str]:
    """Compile the program with this text of the kernel and run it."""
    (folder / "fastalter").mkdir()
    (folder / "fastalter" / KERNEL).write_text(kernel)
    program = folder / "program"
    compiler = ["g++", "-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", *SANITIZERS[sanitizer]]
    source = HERE / "apply_mask_on_host.cpp"
    subprocess.run([*compiler, f"-I{folder}", f"-I{HERE}", str(source), "-o", str(program)], check=True)
    return subprocess.run([str(program)], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_the_kernel_is_right_and_clean(tmp_path: Path, sanitizer: str) -> None:
    done = run_on_host(tmp_path, (INCLUDE / "fastalter" / KERNEL).read_text(), sanitizer)
    assert done.returncode == 0, done.stdout + done.stderr


PLANTED = {
    # one pack too many, over the end of theta
    "out of bounds": ("address", "= (size - head) / LANES;", "= (size - head) / LANES + 1;", "heap-buffer-overflow"),
    # every thread starts at the first pack
    "race": ("thread", "for (int64_t p = thread; p < packs;", "for (int64_t p = 0; p < packs;", "data race"),
    # a 128-bit access at an address that is no multiple of 16
    "misaligned": ("address", "= to_boundary < size ? to_boundary : size;", "= 0 * to_boundary;", "misaligned address"),
    # flags of the neighbouring element: no sanitizer's business, the comparison sees it
    "wrong bit": ("address", "flags_at(mask, bit, 1)", "flags_at(mask, bit > 0 ? bit - 1 : bit, 1)", "wrong at size"),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_caught(tmp_path: Path, bug: str) -> None:
    sanitizer, right, wrong, finding = PLANTED[bug]
    kernel = (INCLUDE / "fastalter" / KERNEL).read_text()
    assert kernel.count(right) == 1, "the kernel has changed: plant the bug anew"
    done = run_on_host(tmp_path, kernel.replace(right, wrong), sanitizer)
    assert done.returncode != 0
    assert finding in done.stdout + done.stderr
