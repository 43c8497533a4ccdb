"""Times every op (pytest --benchmark-only bench); without the timing, these are tests like any other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.cases import Case, every_case
from fastalter.ops import backends

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(scope="module", params=DTYPES)
def of_op(request: pytest.FixtureRequest) -> dict[str, Case]:
    return every_case(DTYPES[request.param])


@pytest.mark.parametrize("op", backends.OPS)
def bench_op(benchmark: Any, of_op: dict[str, Case], op: str) -> None:
    """Checked against the reference, then timed. Ops that do not take a dtype have no case of it."""
    if op not in of_op:
        assert op in (*backends.SCORING, "compress_nm")
        benchmark(lambda: None)
        return
    case = of_op[op]
    case.check()
    benchmark.extra_info["bytes"] = case.bytes
    benchmark(case.run)
