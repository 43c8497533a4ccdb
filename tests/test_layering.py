"""The layering of the package, read off its imports (those inside functions and under TYPE_CHECKING included)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fastalter"
VERBS = {"score", "prune", "finetune", "compact", "evaluate", "compare", "profile", "export", "env"}
PRUNING = ("altermoma", "criteria", "masks", "structure")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, module: str, *, package: bool) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything `source` imports; `from a import b` yields a.b: b may be a module."""
    base = module.split(".") if package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = base[: len(base) - node.level + 1] if node.level else []
            prefix = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((node.lineno, str(arg.value)) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def package_imports() -> list[tuple[str, str, str]]:
    """(where, importing module, imported name) for all of the package, its own names only."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = module_of(path)
        for line, name in imports_of(path.read_text(), module, package=path.name == "__init__.py"):
            if name.split(".")[0] == "fastalter":
                found.append((f"{path.relative_to(ROOT)}:{line}", module, name))
    return found


def inside(name: str, *parts: str) -> bool:
    return any(name == f"fastalter.{part}" or name.startswith(f"fastalter.{part}.") for part in parts)


IMPORTS = package_imports()


def test_the_parser_sees_every_form_of_import():
    source = (
        "import fastalter.masks\nfrom .. import criteria\nfrom ..masks.select import x\ndef f():\n    from . import y\n"
        "importlib.import_module('fastalter.structure')\n"
    )
    names = {name for _, name in imports_of(source, "fastalter.models.swin", package=False)}
    assert names == {
        "fastalter.masks",
        "fastalter.criteria",
        "fastalter.masks.select.x",
        "fastalter.models.y",
        "fastalter.structure",
    }
    assert {n for _, n in imports_of("from . import z", "fastalter.models", package=True)} == {"fastalter.models.z"}
    assert len(IMPORTS) > 3


def test_models_data_and_tasks_know_nothing_of_pruning():
    wrong = [i for i in IMPORTS if inside(i[1], "models", "data", "tasks") and inside(i[2], *PRUNING)]
    assert not wrong


def test_the_trainer_knows_no_model_and_no_pruning():
    allowed = ("training", "errors", "artifacts", "report")
    assert not [i for i in IMPORTS if inside(i[1], "training") and not inside(i[2], *allowed)]


def test_ops_import_only_errors_and_kernels():
    allowed = ("ops", "errors", "triton_kernels")
    wrong = [i for i in IMPORTS if inside(i[1], "ops") and not inside(i[2], *allowed)]
    assert not wrong


def test_ops_import_the_kernels_lazily():
    for path in sorted((PACKAGE / "ops").glob("*.py")):
        tree = ast.parse(path.read_text())
        top = ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])
        names = [n for _, n in imports_of(ast.unparse(top), module_of(path), package=path.name == "__init__.py")]
        assert not [n for n in names if "triton" in n or "cupy" in n], path


def test_nothing_imports_a_verb():
    wrong = [i for i in IMPORTS if inside(i[2], *VERBS)]
    assert not wrong


def test_a_verb_parses_calls_and_shows():
    """No torch, no loops over tensors: a verb's own code is options, one call, one display."""
    for verb in sorted(VERBS):
        path = PACKAGE / f"{verb}.py"
        if not path.exists():
            continue
        names = {name for _, name in imports_of(path.read_text(), f"fastalter.{verb}", package=False)}
        assert not [n for n in names if n.split(".")[0] in ("torch", "numpy", "safetensors", "spconv")], verb
        assert not [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.For | ast.While)], verb


def test_the_version_is_stated_once():
    stated = re.search(r'__version__ = "([^"]+)"', (PACKAGE / "version.py").read_text())
    assert stated
    sources = [ROOT / "pyproject.toml", ROOT / "setup.py", ROOT / "CMakeLists.txt", *PACKAGE.rglob("*.py")]
    holders = [p for p in sources if p.exists() and stated[1] in re.findall(r"[\d.]+\d", p.read_text())]
    assert [p.name for p in holders] == ["version.py"]


def test_importing_the_package_is_light():
    heavy = "torch", "spconv", "nuscenes", "matplotlib", "typer", "triton", "cupy"
    code = (
        "import sys, time; start = time.perf_counter(); import fastalter; took = time.perf_counter() - start\n"
        f"print(took, *[m for m in {heavy} if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    seconds, *loaded = output.split()
    assert not loaded
    assert float(seconds) < 0.2


@pytest.mark.parametrize("name", ["score_model", "Scores", "Mask", "models", "__version__"])
def test_public_names_load_on_demand(name):
    code = f"import fastalter; assert fastalter.{name} is not None; assert {name!r} in dir(fastalter)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
