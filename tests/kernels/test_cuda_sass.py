"""nvcc compiles the CUDA kernels without a warning, to the machine code they were written for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.occupancy import RESERVED_SHARED, SM
from fastalter.triton_kernels.budget import ARCHS
from tests.kernels import cuda_tools
from tests.kernels.cuda_tools import KERNELS, Kernel

QUICK = (80, 90)


def violations(kernel: Kernel, facts: dict[str, Any], arch: int) -> list[str]:
    """What of the design the machine code breaks."""
    found = []
    if facts["stack"] or facts["spills"]:
        found.append(f"spills: {facts['spills']} LDL/STL instructions, a stack of {facts['stack']} bytes")
    if facts["generic"]:
        found.append(f"does not know that these access global memory: {facts['generic']}")
    threads = min(kernel.threads_per_sm, SM[arch].threads)
    if facts["registers"] * threads > SM[arch].registers:
        found.append(f"takes {facts['registers']} registers: {threads} threads do not fit an SM")
    blocks = threads // cuda_tools.THREADS
    if blocks * (facts["shared"] + RESERVED_SHARED) > SM[arch].shared:
        found.append(f"takes {facts['shared']} bytes of shared memory: {blocks} blocks do not fit an SM")
    wide_load = any(name.startswith("LDG.E.128") for name in facts["loads"])
    wide_store = any(name.startswith("STG.E.128") for name in facts["stores"])
    if kernel.wide_loads and not wide_load:
        found.append(f"loads nothing 128 bits at a time: {facts['loads']}")
    if kernel.wide_stores and not wide_store:
        found.append(f"stores nothing 128 bits at a time: {facts['stores']}")
    if kernel.wide_loads and threads * kernel.in_flight < 24 * 1024:
        found.append(f"keeps {threads * kernel.in_flight} bytes in flight on an SM")
    return found


@pytest.mark.parametrize("arch", [a if a in QUICK else pytest.param(a, marks=pytest.mark.slow) for a in ARCHS])
def test_the_machine_code_is_what_the_kernels_were_written_for(arch: int) -> None:
    facts = cuda_tools.facts(arch)
    broken = {kernel.expression: violations(kernel, facts[kernel.expression], arch) for kernel in KERNELS}
    assert not any(broken.values()), json.dumps({name: found for name, found in broken.items() if found}, indent=1)


def test_a_packs_path_has_no_narrow_twin() -> None:
    """Each 128-bit access of a pack is one instruction: as many as the source has rows of packs."""
    facts = cuda_tools.facts(QUICK[-1])
    for element in cuda_tools.TYPES:
        pack = facts[f"fastalter::pack_sparse_kernel<{element}>"]
        unpack = facts[f"fastalter::unpack_sparse_kernel<{element}>"]
        assert (pack["loads"]["LDG.E.128"], unpack["stores"]["STG.E.128"]) == (4, 4)
    for element in ("uint16_t", "uint32_t"):
        compress = facts[f"fastalter::compress_nm_kernel<{element}>"]
        assert compress["loads"] == {"LDG.E.128": 16}
        assert compress["stores"] == {"STG.E.128": 9}


def test_every_header_has_kernels_in_the_table() -> None:
    """KERNELS, which everything here goes by, leaves out none."""
    named = {kernel.name for kernel in KERNELS}
    text = "".join(path.read_text() for path in (cuda_tools.INCLUDE / "fastalter").glob("*.cuh"))
    assert named == set(re.findall(r"(\w+_kernel)\(", text))
    json.dumps(cuda_tools.facts(QUICK[-1]))


PLANTED = {
    "a spill": (
        "pack_sparse.cuh",
        "__launch_bounds__(BLOCK, HALF_OF_SM)\n    pack",
        "__launch_bounds__(BLOCK, 8)\n    pack",
    ),
    "a warning": ("apply_mask.cuh", "const int64_t threads =", "const int unused = 0;\n    const int64_t threads ="),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_nvcc_refuses_spills_and_warnings(tmp_path: Path, bug: str) -> None:
    header, right, wrong = PLANTED[bug]
    shutil.copytree(cuda_tools.INCLUDE, tmp_path / "include")
    path = tmp_path / "include" / "fastalter" / header
    assert right in path.read_text(), f"{header} has changed: plant the bug anew"
    path.write_text(path.read_text().replace(right, wrong))
    with pytest.raises(AssertionError, match=r"spill|never referenced|never used"):
        cuda_tools.compile_cubin(tmp_path, QUICK[-1], tmp_path / "include")


def test_a_broken_design_is_seen() -> None:
    kernel = next(kernel for kernel in KERNELS if kernel.name == "apply_mask_kernel")
    facts = cuda_tools.facts(QUICK[-1])[kernel.expression]
    assert not violations(kernel, facts, 90)
    assert violations(kernel, facts | {"spills": 1}, 90)
    assert violations(kernel, facts | {"stack": 8}, 90)
    assert violations(kernel, facts | {"generic": {"LD.E": 1}}, 90)
    assert violations(kernel, facts | {"registers": 33}, 90)
    assert violations(kernel, facts | {"shared": 40_000}, 90)
    assert violations(kernel, facts | {"loads": {"LDG.E.64": 2}}, 90)
    assert violations(kernel, facts | {"stores": {"STG.E": 4}}, 90)


def test_a_missing_nvcc_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(AssertionError, match="pip install nvidia-cuda-nvcc"):
        cuda_tools.find_nvcc()
