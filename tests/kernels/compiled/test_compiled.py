"""Every specialisation of every Triton kernel, compiled ahead of time, keeps its budget. Needs no GPU."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import pytest
import triton
import triton.language as tl

from fastalter.triton_kernels import specialisations
from fastalter.triton_kernels.budget import ARCHS, Budget, Specialisation
from tests.kernels.compiled import aot

QUICK = (80, 90)  # one of the warp-level, one of the warp-group matrix units


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    assert os.environ.get("TRITON_INTERPRET") != "1", "run this folder alone, without TRITON_INTERPRET"


def every_form() -> list[Any]:
    cases = []
    for form in specialisations():
        for arch in form.archs:
            marks = () if arch in QUICK else pytest.mark.slow
            cases.append(pytest.param(form, arch, marks=marks, id=f"{form.op}: {form.form}, sm_{arch}"))
    return cases


@pytest.mark.parametrize(("form", "arch"), every_form())
def test_budget(form: Specialisation, arch: int) -> None:
    facts = aot.compile(form, arch)
    assert json.loads(json.dumps(facts)) == facts
    assert not aot.violations(facts, form, arch), facts


def test_every_architecture_is_there_for_every_op() -> None:
    covered: dict[str, set[int]] = {}
    for form in specialisations():
        covered.setdefault(form.op, set()).update(form.archs)
    assert {op: sorted(archs) for op, archs in covered.items()} == dict.fromkeys(covered, sorted(ARCHS))


def kernels() -> list[Specialisation]:
    """One specialisation of each kernel."""
    return list({form.kernel.fn.__name__: form for form in reversed(specialisations())}.values())


@pytest.mark.parametrize("form", kernels(), ids=lambda form: form.kernel.fn.__name__)
def test_sizes_of_one_are_constants_and_still_compile(form: Specialisation) -> None:
    """Triton makes a constant of an integer argument that is 1; one channel or one pixel must not break a kernel."""
    integers = {name for name, kind in form.signature.items() if kind in ("i32", "i64")}
    one = dataclasses.replace(
        form,
        signature={name: "constexpr" if name in integers else kind for name, kind in form.signature.items()},
        constants=dict(form.constants) | dict.fromkeys(integers, 1),
        divisible=tuple(name for name in form.divisible if name not in integers),
    )
    assert aot.compile(one, form.archs[0])["code"]


def test_stored_products_are_not_read_back_through_the_read_only_cache() -> None:
    """masked_fuse loads what its own block has stored, so the loads must be coherent."""
    form = next(form for form in specialisations() if form.op == "masked_fuse")
    loads = aot.compile(form, form.archs[0])["loads"]
    assert any(name.startswith("LDG.") for name in loads)
    assert not any("CONSTANT" in name for name in loads)


# ---- planted: what the checker must report --------------------------------------------------------------------------


@triton.jit
def _spilling_kernel(x, y, BLOCK: tl.constexpr):
    """512 registers' worth of values in every thread of a single warp."""
    o = tl.arange(0, BLOCK)
    b_x = tl.load(x + o)
    tl.store(y + o, b_x * tl.sum(b_x, 0))


@triton.jit
def _copying_kernel(x, y, n, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + o, tl.load(x + o, mask=o < n, other=0.0), mask=o < n)


@triton.jit
def _multiplying_kernel(x, y, PRECISION: tl.constexpr, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    b_x = tl.load(x + o)
    tl.store(y + o, tl.dot(b_x, b_x, input_precision=PRECISION))


def planted(kernel: Any, constants: dict[str, Any], budget: Budget, divisible: tuple[str, ...], warps: int = 4) -> Any:
    types = {"x": "*fp32", "y": "*fp32", "n": "i32"}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    return Specialisation(
        "planted", "fp32", kernel, signature, constants, budget, divisible, warps, options={"enable_fp_fusion": False}
    )


@pytest.mark.parametrize("arch", QUICK)
def test_spills_are_reported(arch: int) -> None:
    form = planted(_spilling_kernel, {"BLOCK": 16384}, Budget(255, 1 << 16), ("x", "y"), warps=1)
    facts = aot.compile(form, arch)
    assert facts["spills"]
    assert facts["stack"]
    assert any("spills" in line for line in aot.violations(facts, form, arch))


@pytest.mark.parametrize("arch", QUICK)
def test_scalar_accesses_are_reported(arch: int) -> None:
    wide = planted(_copying_kernel, {"BLOCK": 1024}, Budget(64), ("x", "y", "n"))
    assert not aot.violations(aot.compile(wide, arch), wide, arch)
    scalar = dataclasses.replace(wide, divisible=())
    found = aot.violations(aot.compile(scalar, arch), scalar, arch)
    assert sum("128 bits" in line for line in found) == 2
    counted = dataclasses.replace(wide, in_flight=32)
    assert not aot.violations(aot.compile(counted, arch), counted, arch)
    counted = dataclasses.replace(counted, in_flight=48)
    assert any("in flight" in line for line in aot.violations(aot.compile(counted, arch), counted, arch))


@pytest.mark.parametrize("arch", QUICK)
def test_a_product_without_tensor_cores_is_reported(arch: int) -> None:
    budget = Budget(255, 1 << 16, matrix=True)
    with_them = planted(_multiplying_kernel, {"PRECISION": "tf32", "BLOCK": 64}, budget, ("x", "y"))
    assert not aot.violations(aot.compile(with_them, arch), with_them, arch)
    without = planted(_multiplying_kernel, {"PRECISION": "ieee", "BLOCK": 64}, budget, ("x", "y"))
    found = aot.violations(aot.compile(without, arch), without, arch)
    assert "has no tensor-core instruction" in found


def test_registers_and_shared_memory_over_budget_are_reported() -> None:
    form = planted(_multiplying_kernel, {"PRECISION": "tf32", "BLOCK": 64}, Budget(8, 1024), ("x", "y"))
    found = aot.violations(aot.compile(form, 80), form, 80)
    assert any("registers" in line for line in found)
    assert any("shared memory, the budget" in line for line in found)
    facts = aot.compile(form, 80) | {"shared": 120_000}
    roomy = dataclasses.replace(form, budget=Budget(255, 1 << 20))
    assert any("sm_86 has" in line for line in aot.violations(facts, roomy, 86))
    assert not aot.violations(facts, roomy, 80)


def test_a_signature_that_is_not_the_kernels_is_refused() -> None:
    form = planted(_copying_kernel, {"BLOCK": 1024}, Budget(64), ())
    with pytest.raises(AssertionError, match="differ"):
        aot.compile(dataclasses.replace(form, signature={"x": "*fp32"}), 80)
    unknown = {**form.signature, "BLOCK": "i32"}
    with pytest.raises(AssertionError, match="constexpr"):
        aot.compile(dataclasses.replace(form, signature=unknown), 80)
