"""Thin bridge from setuptools to CMakeLists.txt, which builds the compiled libraries; metadata is in pyproject.toml.

Environment: FASTALTER_CUDA=0 skips the CUDA library, FORCE_CUDA=1 makes a missing nvcc an error; without either it is
built where nvcc is. TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX") and MAX_JOBS work as for torch's own extensions.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def find_torch() -> Path:
    """The installed torch package, without the seconds its import takes."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit("fastalter builds against the installed torch: install torch >= 2.10, then use --no-build-isolation")
    return Path(spec.origin).parent


def find_nvcc() -> str | None:
    """nvcc as CUDACXX, CUDA_HOME or the path name it; None if there is none, or nothing to build with it."""
    if os.environ.get("FASTALTER_CUDA") == "0":
        return None
    if not (TORCH / "lib" / "libtorch_cuda.so").exists():
        if os.environ.get("FORCE_CUDA") == "1":
            sys.exit(f"FORCE_CUDA=1, but the torch in {TORCH} is built without CUDA: install one that is")
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [os.environ.get("CUDACXX"), f"{home}/bin/nvcc" if home else None, "nvcc", "/usr/local/cuda/bin/nvcc"]
    nvcc = next((found for place in places if place and (found := shutil.which(place))), None)
    if nvcc is None and os.environ.get("FORCE_CUDA") == "1":
        sys.exit("FORCE_CUDA=1, but there is no nvcc: set CUDA_HOME or CUDACXX, or put nvcc on the path")
    return nvcc


TORCH = find_torch()
NVCC = find_nvcc()


class CMakeBuild(build_ext):
    """All libraries in one CMake run. They hold no Python, so their names carry no Python version."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def run(self) -> None:
        output = Path(self.get_ext_fullpath(self.extensions[0].name)).resolve().parent
        build = Path(self.build_temp).resolve()
        configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release"]
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        configure += [
            f"-DFASTALTER_TORCH={TORCH}",
            f"-DFASTALTER_OUTPUT={output}",
            f"-DFASTALTER_CUDA={'ON' if NVCC else 'OFF'}",
            f"-DTORCH_CUDA_ARCH_LIST={os.environ.get('TORCH_CUDA_ARCH_LIST', '')}",
        ]
        if NVCC:
            configure += [f"-DCMAKE_CUDA_COMPILER={NVCC}"]
        subprocess.run(configure, check=True)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)


class PlatformWheel(bdist_wheel):
    """One wheel for every Python 3 on the platform: the libraries use torch's stable ABI and no Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


LIBRARIES = ["libfastalter_cpu", *(["libfastalter_cuda"] if NVCC else [])]

setup(
    packages=[
        *find_packages(include=["fastalter", "fastalter.*"]),
        "fastalter.triton_kernels",
        "fastalter.ops.include",
    ],
    package_dir={"fastalter.triton_kernels": "triton_kernels", "fastalter.ops.include": "csrc/include"},
    ext_modules=[Extension(f"fastalter.ops.{library}", sources=[]) for library in LIBRARIES],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": PlatformWheel},
)
