"""Times every op (pytest --benchmark-only bench); without the timing, these are tests like any other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.cases import Case, Workload, cases, scaled_split

SIZE = 1_000_000


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["float32", "float64"])
def of_op(request: pytest.FixtureRequest) -> dict[str, Case]:
    return cases(Workload(scaled_split(SIZE), request.param))


def bench_indicator_sums(benchmark: Any, of_op: dict[str, Case]) -> None:
    time_case(benchmark, of_op["indicator_sums"])


def bench_alter_score(benchmark: Any, of_op: dict[str, Case]) -> None:
    time_case(benchmark, of_op["alter_score"])


def bench_kth_value(benchmark: Any, of_op: dict[str, Case]) -> None:
    time_case(benchmark, of_op["kth_value"])


def bench_make_mask(benchmark: Any, of_op: dict[str, Case]) -> None:
    time_case(benchmark, of_op["make_mask"])


def bench_apply_mask(benchmark: Any, of_op: dict[str, Case]) -> None:
    time_case(benchmark, of_op["apply_mask"])


def time_case(benchmark: Any, case: Case) -> None:
    case.check()
    benchmark.extra_info["bytes"] = case.bytes
    benchmark(case.run)
