"""A wheel built from the sdist works on its own: outside the checkout, with its compiled library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ERRORS = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")
NOT_SOURCE = (".*", "build", "dist", "out", "*.egg-info", "__pycache__", "*.so")


def run(*command: object, cwd: Path, **env: str) -> str:
    """Run python with these arguments; CUDA off, so that the build takes seconds."""
    settings = {**os.environ, "FASTALTER_CUDA": "0", **env}
    settings.pop("FASTALTER_BACKEND", None)
    arguments = [sys.executable, *(str(part) for part in command)]
    done = subprocess.run(arguments, cwd=cwd, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout, so that the build leaves nothing in it."""
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*NOT_SOURCE))
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    run("-c", build, cwd=folder / "source")
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    pip = ("-m", "pip", "--no-input", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", sdist.parent, sdist, cwd=sdist.parent)
    return next(sdist.parent.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    target = wheel.parent / "installed"
    run("-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel, cwd=wheel.parent)
    return target


def test_the_sdist_holds_what_the_build_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {"CMakeLists.txt", "setup.py", "pyproject.toml", "constraints.txt", "LICENSE", "README.md"}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "triton_kernels").glob("*.py")}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "fastalter").rglob("*.py")}
    assert wanted <= names


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name.split("-")[2:4] == ["py3", "none"], "the library holds no Python: one wheel for every version"
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"fastalter"}
    assert "fastalter/ops/libfastalter_cpu.so" in names
    assert "fastalter/triton_kernels/__init__.py" in names
    assert "fastalter/py.typed" in names
    assert {f"fastalter/assets/bevfusion_tiny.{kind}" for kind in ("pth", "json", "csv", "png")} <= set(names)
    assert {f"fastalter/report/html/report.{kind}" for kind in ("html.jinja", "css")} <= set(names)


PROGRAM = """
import json, os, torch
os.environ["FASTALTER_BACKEND"] = "cpp"  # the compiled library or an error
import fastalter, fastalter.triton_kernels
from fastalter import ops
threshold, cut = ops.kth_value(torch.tensor([3.0, 1.0, 2.0]), 2)
print(json.dumps([fastalter.__file__, fastalter.triton_kernels.__file__, float(threshold), int(cut)]))
"""


def test_the_installed_wheel_runs_an_op_in_cpp_outside_the_checkout(installed: Path) -> None:
    package, kernels, threshold, cut = json.loads(run("-c", PROGRAM, cwd=installed.parent, PYTHONPATH=str(installed)))
    assert Path(package) == installed / "fastalter" / "__init__.py"
    assert Path(kernels) == installed / "fastalter" / "triton_kernels" / "__init__.py"
    assert (threshold, cut) == (2.0, 2)


def test_the_installed_verb_reports_the_library(installed: Path) -> None:
    out = run("-m", "fastalter.env", "--json", cwd=installed.parent, PYTHONPATH=str(installed))
    assert json.loads(out)["ops"]["cpu"]["kth_value"]["serves"] == "cpp"


def test_the_installed_verb_writes_a_report(installed: Path) -> None:
    numbers = {"mean_ap": 0.5, "nd_score": 0.4, "tp_errors": dict.fromkeys(ERRORS, 1.0)}
    (installed.parent / "metrics.json").write_text(json.dumps(numbers))
    options = ("--evaluation", "metrics.json", "--out", "report.html")
    run("-m", "fastalter.report", *options, cwd=installed.parent, PYTHONPATH=str(installed))
    assert "0.500" in (installed.parent / "report.html").read_text(encoding="utf-8")


def test_force_cuda_without_nvcc_is_an_error(sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path)  # our own file; Python 3.11.2 knows no filter=
    source = next(tmp_path.iterdir())
    nothing = {"PATH": str(tmp_path), "CUDA_HOME": "", "CUDA_PATH": "", "CUDACXX": ""}
    places = "import runpy, shutil; shutil.which = lambda place: None; runpy.run_path('setup.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", places, "--name"],
        cwd=source,
        env={**os.environ, **nothing, "FORCE_CUDA": "1", "FASTALTER_CUDA": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "FORCE_CUDA=1, but there is no nvcc" in done.stderr
