"""NVRTC 12, called directly, compiles the kernels from the source and options that CuPy is given. Needs no driver."""

from __future__ import annotations

import importlib.util

import pytest

from fastalter.ops import cupy_kernels
from tests.kernels import cuda_tools

ARCHS = (80, 86, 90)
QUICK = (80, 90)
OF_CUPY = ("--device-as-default-execution-space",)  # what CuPy 13 adds to the options of a RawModule


def compile_op(op: str, arch: int) -> dict[str, str]:
    options = [*cupy_kernels.options(), *OF_CUPY, f"-arch=sm_{arch}"]
    cubin, names = cuda_tools.compile_nvrtc(cupy_kernels.SOURCE, options, cupy_kernels.KERNELS[op])
    assert cubin[:4] == b"\x7fELF"
    return names


@pytest.mark.parametrize("arch", [a if a in QUICK else pytest.param(a, marks=pytest.mark.slow) for a in ARCHS])
def test_nvrtc_compiles_every_kernel(arch: int) -> None:
    for op in cupy_kernels.KERNELS:
        names = compile_op(op, arch)
        assert sorted(names) == sorted(cupy_kernels.KERNELS[op])
        assert len(set(names.values())) == len(names)


def test_every_kernel_has_its_name_in_python() -> None:
    assert {kernel.expression for kernel in cuda_tools.KERNELS} == {
        expression for expressions in cupy_kernels.KERNELS.values() for expression in expressions
    }


def test_an_error_comes_with_nvrtcs_log() -> None:
    options = [*cupy_kernels.options(), "-arch=sm_80"]
    with pytest.raises(AssertionError, match="no_such_function"):
        cuda_tools.compile_nvrtc("__global__ void k() { no_such_function(); }", options, ["k"])


def test_a_missing_nvrtc_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AssertionError, match=r'pip install "nvidia-cuda-nvrtc-cu12>=12.8"'):
        cuda_tools.nvrtc.__wrapped__()
