"""Compiles a specialisation ahead of time, without a GPU, and reads from the machine code what became of it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastalter.triton_kernels.budget import Specialisation
from tests.kernels import sass

# Bytes of shared memory that one block may have: the opt-in limits of CUDA's table of compute capabilities.
SHARED = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
REGISTERS = 255  # the most that a thread can name


def compile(specialisation: Specialisation, arch: int) -> dict[str, Any]:
    """Facts about one specialisation on one architecture, JSON-able.

    Returns: shared (bytes a block, dynamic) and `sass.figures`.
    """
    kernel, names = specialisation.kernel, specialisation.kernel.arg_names
    missing = set(names) ^ set(specialisation.signature)
    assert not missing, f"{specialisation.op}, {specialisation.form}: the signature and the kernel differ in {missing}"
    open_ones = {p.name for p in kernel.params if p.is_constexpr and specialisation.signature[p.name] != "constexpr"}
    assert not open_ones, f"{specialisation.op}, {specialisation.form}: {open_ones} must be constexpr"
    source = ASTSource(
        fn=kernel,
        signature={name: specialisation.signature[name] for name in names},
        constexprs=dict(specialisation.constants),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in specialisation.divisible},
    )
    options = {"enable_fp_fusion": True} | dict(specialisation.options)
    options |= {"num_warps": specialisation.num_warps, "num_stages": specialisation.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return {"shared": compiled.metadata.shared} | read(compiled.asm["cubin"])


def read(cubin: bytes) -> dict[str, Any]:
    """What `compile` returns, as far as it is in the machine code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        listing = sass.run(sass.TOOLS / "cuobjdump", "-sass", "-res-usage", path)
    return sass.figures(listing, listing)


def moved(accesses: dict[str, int]) -> int:
    """Bits that a thread moves with these accesses if each runs once."""
    return sum(count * sass.width(name) for name, count in accesses.items())


def wide(accesses: dict[str, int]) -> int:
    """`moved` by accesses of 128 bits or more."""
    return moved({name: count for name, count in accesses.items() if sass.width(name) >= 128})


def violations(facts: dict[str, Any], form: Specialisation, arch: int) -> list[str]:
    """What of the form's budget the facts break, one sentence each."""
    budget, found = form.budget, []
    if facts["stack"] or facts["spills"]:
        found.append(f"spills: {facts['spills']} LDL/STL instructions, a stack of {facts['stack']} bytes")
    if facts["registers"] > min(budget.registers, REGISTERS):
        found.append(f"takes {facts['registers']} registers, the budget is {budget.registers}")
    if facts["shared"] > budget.shared:
        found.append(f"takes {facts['shared']} bytes of shared memory, the budget is {budget.shared}")
    if facts["shared"] > SHARED[arch]:
        found.append(f"takes {facts['shared']} bytes of shared memory, sm_{arch} has {SHARED[arch]} for a block")
    if budget.wide:
        found += [f"{what} is not moved 128 bits at a time" for what in _narrow(facts, form)]
    if budget.matrix and not facts["matrix"]:
        found.append("has no tensor-core instruction")
    return found


def _narrow(facts: dict[str, Any], form: Specialisation) -> list[str]:
    """Which accesses are narrow where they should not be.

    Loads: what a thread has in flight must come from 128-bit loads alone, where the form says what it has; a kernel may
    have narrow loads beside them, for edges and a channel's scalars. Where it does not say, and for stores: half of
    what is moved, unless the stores are a reduction's few results.
    """
    loads, stores = facts["loads"], facts["stores"]
    found = []
    if form.in_flight is not None:
        if wide(loads) < 8 * form.in_flight:
            found.append(f"what a thread has in flight ({form.in_flight} bytes; {loads})")
    elif 2 * wide(loads) < moved(loads) or not loads:
        found.append(f"half of what it loads ({loads})")
    if 2 * wide(stores) < moved(stores) and 4 * moved(stores) >= moved(loads):
        found.append(f"half of what it stores ({stores})")
    return found
