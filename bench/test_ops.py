"""Times every op (pytest --benchmark-only bench); without the timing, these are tests like any other."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from bench.cases import DTYPES, Case, every_case, takes
from fastalter.ops import backends

TAKEN = [(name, op) for name, dtype in DTYPES.items() for op in backends.OPS if takes(op, dtype)]


@functools.cache
def of_op(dtype: str) -> dict[str, Case]:
    return every_case(DTYPES[dtype])


@pytest.mark.parametrize(("dtype", "op"), TAKEN)
def bench_op(benchmark: Any, dtype: str, op: str) -> None:
    """Checked against the reference, then timed."""
    case = of_op(dtype)[op]
    case.check()
    benchmark.extra_info["bytes"] = case.bytes
    benchmark(case.run)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_op_has_a_case_of_every_dtype_it_takes(dtype: str) -> None:
    assert sorted(of_op(dtype)) == sorted(op for name, op in TAKEN if name == dtype)
