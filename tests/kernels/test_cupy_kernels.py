"""The road through CuPy as far as it goes without a driver: a CuPy that runs the kernels on the host stands in."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastalter.errors import BackendError
from fastalter.ops import backends, cupy_kernels, reference
from tests.kernels import compaction_cases, cuda_tools

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


class HostModule:
    """cupy.RawModule, as far as it is used; its kernels are those of bindings_on_host.cpp."""

    def __init__(self, *, code: str, options: tuple[str, ...], name_expressions: list[str], backend: str) -> None:
        assert backend == "nvrtc"
        assert "-std=c++17" in options
        assert all(f'"fastalter/{header}.cuh"' in code for header in cupy_kernels.HEADERS)
        self.name_expressions = name_expressions

    def get_function(self, name: str) -> Any:
        assert name in self.name_expressions

        def launch(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
            values = [by_value(argument) for argument in arguments]
            pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
            assert cuda_tools.bindings().library.run_kernel(name.encode(), grid[0], block[0], pointers) == 0

        return launch


def by_value(argument: Any) -> np.ndarray[Any, Any]:
    """What CuPy hands to a kernel: an int as int64, a numpy array if it has one element."""
    if type(argument) is int:
        return np.array([argument], dtype=np.int64)
    assert isinstance(argument, np.ndarray), type(argument)
    assert argument.size == 1
    return argument


@pytest.fixture
def host_cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CuPy and torch.cuda with a GPU as bindings_on_host.cpp has it."""

    def stream(pointer: int, device: int | None) -> contextlib.nullcontext[None]:
        assert pointer == 1234
        return contextlib.nullcontext()

    cuda = SimpleNamespace(Device=lambda index: contextlib.nullcontext(), ExternalStream=stream)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(RawModule=HostModule, cuda=cuda))
    gpu = SimpleNamespace(multi_processor_count=2, max_threads_per_multi_processor=1536)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=1234))
    cupy_kernels._module.cache_clear()
    yield
    cupy_kernels._module.cache_clear()


@pytest.mark.parametrize("op", compaction_cases.OPS)
def test_launches_are_those_of_the_compiled_library(host_cupy: None, op: str) -> None:
    """Same results, same kernels, grids, integers and task tables (but for the addresses of the targets)."""
    bindings, launcher = cuda_tools.bindings(), getattr(cupy_kernels, f"launch_{op}")
    for case in (case for case in compaction_cases.CASES if case.op == op):
        arguments = case.make(CPU)
        bindings.log()
        compaction_cases.check(case, launcher, CPU)
        here = bindings.log()
        getattr(bindings.ops, op)(*arguments)
        there = bindings.log()
        assert [blank(line) for line in here] == [blank(line) for line in there], case.name


def blank(line: str) -> str:
    """A task's words without the addresses, which differ from call to call."""
    if not line.startswith("  "):
        return line
    first, words = line.split(":")
    _source, _target, kept_x, kept_y, *rest = words.split()
    return " ".join([first, str(kept_x != "0"), str(kept_y != "0"), *rest])


def test_a_mask_that_does_not_fit_the_values_is_refused(host_cupy: None) -> None:
    mask, values = reference.pack_sparse(torch.eye(64).flatten())
    with pytest.raises(RuntimeError, match=r"^unpack_sparse: the mask has 64 bits set, but there are 63 values$"):
        cupy_kernels.launch_unpack_sparse(mask, values[1:], 4096)


def test_a_strided_tensor_of_nine_dims_is_refused(host_cupy: None) -> None:
    theta = torch.ones(1, 1, 1, 1, 1, 1, 1, 3, 2).transpose(-1, -2)
    with pytest.raises(RuntimeError, match="more than 8 dimensions"):
        cupy_kernels.launch_apply_mask([theta], torch.zeros(8, dtype=torch.uint8), [0])


def test_divisors_are_exact() -> None:
    generator = np.random.default_rng(0)
    for by in [*range(1, 70), *(1 << int(s) for s in range(1, 62)), *generator.integers(1, 1 << 62, 200).tolist()]:
        _, multiplier, shift = cupy_kernels.divisor(by)
        assert 0 <= multiplier < 1 << 64
        for n in (0, 1, by - 1, by, by * 5 - 1, by * 5, (1 << 63) - 1, (1 << 63) - 1 - ((1 << 63) - 1) % by):
            if by > 1 and n < 1 << 63:
                assert n * multiplier >> 64 + shift == n // by


def test_constants_are_those_of_the_headers() -> None:
    text = "".join(path.read_text() for path in (cupy_kernels.include_folder() / "fastalter").glob("*.cuh"))

    def value(name: str) -> str:
        return re.findall(rf"constexpr int {name} = (.*?);", text)[0]

    assert int(value("THREADS")) == cupy_kernels.THREADS
    assert value("HALF_OF_SM") == "1024 / THREADS"
    assert cupy_kernels.HALF_OF_SM == 1024 // cupy_kernels.THREADS
    assert int(value("MAX_DIMS")) == cupy_kernels.MAX_DIMS
    for per_thread in ("ITEMS", "PACK_ROWS"):
        assert cupy_kernels.THREADS * int(value(per_thread)) * 16 == cupy_kernels.TILE_BYTES


def test_the_headers_are_found_in_the_checkout() -> None:
    assert {f"{header}.cuh" for header in cupy_kernels.HEADERS} <= {
        path.name for path in (cupy_kernels.include_folder() / "fastalter").iterdir()
    }


def test_the_package_ships_the_headers(tmp_path: Path) -> None:
    """build_py lays out what a wheel holds, without the compiled libraries."""
    steps = f"egg_info -e {tmp_path} build_py -d {tmp_path / 'lib'}".split()
    command = [sys.executable, "setup.py", "-q", *steps]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    shipped = {path.name for path in (tmp_path / "lib" / "fastalter" / "ops" / "include" / "fastalter").iterdir()}
    assert shipped == {path.name for path in (cuda_tools.INCLUDE / "fastalter").glob("*.cuh")}


def test_the_launchers_have_the_ops_of_the_backend() -> None:
    for op in backends.BY_NAME["cupy"].ops:
        assert callable(backends.launcher(backends.BY_NAME["cupy"], op))


def test_cupy_is_imported_on_first_use_alone() -> None:
    code = "import sys, fastalter.ops, fastalter.ops.cupy_kernels; assert 'cupy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_installed_cupy_takes_what_it_is_given() -> None:
    """The real package, up to where a driver would be needed."""
    cupy: Any = importlib.import_module("cupy")
    expressions = cupy_kernels.KERNELS["pack_sparse"]
    module = cupy.RawModule(
        code=cupy_kernels.SOURCE, options=cupy_kernels.options(), name_expressions=expressions, backend="nvrtc"
    )
    assert tuple(module.name_expressions) == tuple(expressions)
    assert cupy.cuda.ExternalStream(0, 0).device_id == 0


def test_a_cpu_tensor_is_not_sent_through_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backends.VARIABLE, "cupy")
    with pytest.raises(BackendError, match="runs on cuda tensors only"):
        backends.serving("pack_sparse", "cpu")
