"""python -m bench.static: compile every GPU kernel for every architecture and write docs/kernels.md.

No GPU is needed and none is used: registers, shared memory, access widths and matrix instructions are read from the
machine code; occupancy follows from them and the launch shape; the roofline share is a model on top
(bench/occupancy.py). Writes the facts to bench/results/static.json as well.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from bench.bulk import provenance
from bench.occupancy import LATENCY, SM, memory_share, resident_blocks
from fastalter.triton_kernels import budget, specialisations
from tests.kernels import cuda_tools, sass
from tests.kernels.compiled import aot

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = Path(__file__).parent / "kernels.template.md"
PAGE = ROOT / "docs" / "kernels.md"
RESULT = Path(__file__).parent / "results" / "static.json"


def triton_row(form: budget.Specialisation, arch: int) -> dict[str, Any]:
    """Facts of one Triton specialisation on one architecture, and what follows from them."""
    facts = aot.compile(form, arch)
    threads = 32 * form.num_warps
    over = form.moved / form.minimum if form.moved and form.minimum else None
    return row(arch, threads, facts, over, form.in_flight) | {
        "op": form.op,
        "form": form.form,
        "kernel": form.kernel.__name__,
    }


def row(arch: int, threads: int, facts: dict[str, Any], over: float | None, in_flight: int | None) -> dict[str, Any]:
    """What the tables show. over: bytes moved over the minimum; in_flight: bytes a thread has requested at once."""
    blocks = resident_blocks(arch, threads, facts["registers"], facts["shared"])
    on_sm = in_flight * threads * blocks if in_flight else None
    return {
        "arch": arch,
        "threads": threads,
        "registers": facts["registers"],
        "shared": facts["shared"],
        "spills": facts["spills"] + facts["stack"],
        "width": max((sass.width(name) for name in (*facts["loads"], *facts["stores"])), default=0),
        "matrix": sorted(facts["matrix"]),
        "occupancy": blocks * threads / SM[arch].threads,
        "in_flight": on_sm,
        "over": over,
        "share": memory_share(arch, on_sm, over) if on_sm and over else None,
    }


def cells(found: dict[str, Any]) -> tuple[str, ...]:
    """One row's cells, without kernel, form and architecture."""
    flight = f"{found['in_flight'] / 1024:.0f} KB" if found["in_flight"] else "-"
    return (
        str(found["threads"]),
        str(found["registers"]),
        f"{found['shared'] / 1024:.1f} KB" if found["shared"] else "0",
        f"{found['width']} bit",
        ", ".join(sorted({name.split(".")[0] for name in found["matrix"]})) or "-",
        f"{found['occupancy']:.0%}",
        flight,
        f"{found['over']:.3f}" if found["over"] else "-",
        f"{found['share']:.0%}" if found["share"] else "-",
    )


HEAD = (
    *("kernel", "form", "sm_", "threads", "registers", "shared", "access", "matrix", "occupancy"),
    *("in flight a SM", "bytes / least", "roofline (model)"),
)


def table(rows: Iterable[dict[str, Any]]) -> str:
    """A markdown table; architectures with the same cells share a row."""
    grouped: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for found in rows:
        grouped[(f"`{found['kernel']}`", found["form"], *cells(found))].append(found["arch"])
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for (kernel, form, *rest), archs in grouped.items():
        lines.append("| " + " | ".join([kernel, form, ", ".join(map(str, archs)), *rest]) + " |")
    return "\n".join(lines)


def sections(rows: list[dict[str, Any]]) -> str:
    """Per Triton file: what it says of itself, then the table of its kernels."""
    by_module: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for found in rows:
        by_module[found["module"]].append(found)
    parts = []
    for module, of_module in by_module.items():
        doc = inspect.getdoc(importlib.import_module(f"fastalter.triton_kernels.{module}")) or ""
        title = ", ".join(dict.fromkeys(found["op"] for found in of_module))
        parts.append(f"### {title}\n\n[`triton_kernels/{module}.py`](../triton_kernels/{module}.py)\n\n{doc}\n")
        parts += [f"**`{name}`** {text}\n" for name, text in kernel_docs(module, of_module)]
        parts.append(table(of_module) + "\n")
    return "\n".join(parts)


def kernel_docs(module: str, rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What the module's kernels say of themselves."""
    home = importlib.import_module(f"fastalter.triton_kernels.{module}")
    names = dict.fromkeys(found["kernel"] for found in rows)
    return [(name, doc) for name in names if (doc := inspect.getdoc(getattr(home, name).fn))]


def cuda_sections(rows: list[dict[str, Any]], about: dict[str, str]) -> str:
    """Per header: what it says of itself, then the table of its kernels."""
    parts = []
    for header, text in about.items():
        parts.append(f"### {header}\n\n[`{header}`](../csrc/include/fastalter/{header})\n\n{text}\n")
        parts.append(table(found for found in rows if found["header"] == header) + "\n")
    return "\n".join(parts)


def about_header(path: Path) -> str:
    """The comment that a header begins with."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("//"):
            break
        lines.append(line.removeprefix("//").removeprefix(" "))
    return "\n".join(lines)


def gather(archs: list[int], ops: list[str] | None = None) -> list[dict[str, Any]]:
    """Triton rows, of all ops if none are named; a specialisation is compiled for every architecture that it is for."""
    rows = []
    forms = [form for form in specialisations() if ops is None or form.op in ops]
    jobs = [(form, arch) for form in forms for arch in form.archs if arch in archs]
    for form, arch in track(jobs, "Triton", console=Console(stderr=True)):
        rows.append(triton_row(form, arch) | {"module": form.kernel.fn.__module__.rpartition(".")[2]})
    return rows


def gather_cuda(archs: list[int]) -> list[dict[str, Any]]:
    """All CUDA rows."""
    rows = []
    for arch in track(archs, "nvcc", console=Console(stderr=True)):
        facts = cuda_tools.facts(arch)
        for kernel in cuda_tools.KERNELS:
            found = facts[kernel.expression]
            figures = row(arch, cuda_tools.THREADS, found, kernel.moved, kernel.in_flight)
            named = {"op": kernel.op, "form": kernel.form, "kernel": kernel.name, "header": kernel.header}
            rows.append(figures | named)
    return rows


def cuda_about() -> dict[str, str]:
    """Per header: the comment it begins with, and why each of its kernels moves what it moves."""
    about: dict[str, str] = {}
    for kernel in cuda_tools.KERNELS:
        path = cuda_tools.INCLUDE / "fastalter" / kernel.header
        text = about.setdefault(kernel.header, about_header(path))
        line = f"`{kernel.name}`: {kernel.why}."
        if line not in text:
            about[kernel.header] = f"{text}\n\n{line}"
    return about


def page(rows: list[dict[str, Any]], cuda_rows: list[dict[str, Any]], tools: str) -> str:
    """docs/kernels.md."""
    wanted = ", ".join(
        f"{sm.bandwidth / sm.processors * LATENCY / 1024:.0f} KB on sm_{arch} ({sm.card})" for arch, sm in SM.items()
    )
    return TEMPLATE.read_text().format(
        tools=tools,
        wanted=wanted,
        latency=LATENCY * 1e9,
        triton=sections(rows),
        cuda=cuda_sections(cuda_rows, cuda_about()),
    )


def main(
    arch: Annotated[list[int] | None, typer.Option(help="Architectures; all six if not given.")] = None,
    out: Annotated[Path, typer.Option(help="The page.")] = PAGE,
    compile: Annotated[bool, typer.Option(help="Compile; else take the facts of the last run.")] = True,
    op: Annotated[list[str] | None, typer.Option(help="Triton ops to compile; the rest is the last run's.")] = None,
) -> None:
    archs = arch or list(budget.ARCHS)
    if op or not compile:
        result = json.loads(RESULT.read_text())
        result["rows"] = refreshed(result["rows"], archs, op or [])
    else:
        result = measure(archs)
    if compile and not arch:
        RESULT.write_text(json.dumps(result, indent=0) + "\n")
    rows = [found for found in result["rows"] if "module" in found]
    cuda_rows = [found for found in result["rows"] if "header" in found]
    out.write_text(page(rows, cuda_rows, result["tools"]))
    typer.echo(f"written: {out}: {len(rows)} Triton and {len(cuda_rows)} CUDA forms")


def refreshed(rows: list[dict[str, Any]], archs: list[int], ops: list[str]) -> list[dict[str, Any]]:
    """The rows with those of these Triton ops made anew, at the places of the first of each op."""
    anew = {op: gather(archs, [op]) for op in ops}
    kept: list[dict[str, Any]] = []
    for found in rows:
        if "module" in found and found["op"] in ops:
            kept += anew.pop(found["op"], [])  # at its first row; the others go
        else:
            kept.append(found)
    return kept


def measure(archs: list[int]) -> dict[str, Any]:
    """All rows, and what they were made with."""
    nvcc = re.findall(r"V[\d.]+", sass.run(cuda_tools.find_nvcc(), "--version"))[0]
    tools = f"Triton {importlib.metadata.version('triton')}, nvcc {nvcc[1:]}"
    return {"provenance": provenance(), "tools": tools, "rows": gather(archs) + gather_cuda(archs)}


if __name__ == "__main__":
    typer.run(main)
