"""What a kernel is compiled to and what the compiler must make of it; tests/kernels/compiled asserts it from SASS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ARCHS = (80, 86, 89, 90, 100, 120)


@dataclass(frozen=True)
class Budget:
    """Limits that hold on every architecture; no specialisation may spill.

    registers  a thread's most
    shared     bytes of shared memory a block takes at most
    wide       global loads and stores of contiguous data are 128 bits wide; False for kernels that gather or reduce
    matrix     tensor-core instructions are there (HMMA, HGMMA, UTCHMMA, DMMA as the architecture has them)
    """

    registers: int
    shared: int = 0
    wide: bool = True
    matrix: bool = False


@dataclass(frozen=True)
class Specialisation:
    """One compiled form of a kernel.

    op, form   the op it serves and what sets this form apart ("bf16", "float32, 2 stages", ...)
    kernel     the @triton.jit function
    signature  argument -> triton type ("*bf16", "i64", "constexpr")
    constants  values of the constexpr arguments
    divisible  arguments (pointers, sizes) that the launcher guarantees to be multiples of 16
    minimum    bytes per element that the op's algorithm must move, passes counted; None for matrix kernels
    moved      bytes per element that this kernel moves
    in_flight  bytes a thread has requested at once, for Little's law
    options    further options that the launcher passes to the compiler, e.g. {"enable_fp_fusion": False}
    """

    op: str
    form: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    budget: Budget
    divisible: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 2
    minimum: float | None = None
    moved: float | None = None
    in_flight: int | None = None
    archs: tuple[int, ...] = field(default=ARCHS)
    options: Mapping[str, Any] = field(default_factory=dict)
