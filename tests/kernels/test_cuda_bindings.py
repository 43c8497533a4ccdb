"""The bindings of the CUDA library, their own code run on the host: arguments, tables, grids, allocations, errors."""

from __future__ import annotations

import re

import pytest
import torch

from fastalter.ops import reference
from tests.kernels import compaction_cases, cuda_tools

CPU = torch.device("cpu")


@pytest.mark.parametrize("op", compaction_cases.OPS)
def test_the_bindings_agree_with_the_reference_bitwise(op: str) -> None:
    implementation = getattr(cuda_tools.bindings().ops, op)
    cases = [case for case in compaction_cases.CASES if case.op == op]
    assert len(cases) >= 4
    for case in cases:
        compaction_cases.check(case, implementation, CPU)


def test_many_tensors_take_one_launch() -> None:
    bindings = cuda_tools.bindings()
    bindings.log()
    bindings.ops.compact_channels(*compaction_cases.compact_arguments(CPU, torch.float32, 0))
    log = bindings.log()
    assert len([line for line in log if "<<<" in line]) == 1
    assert len(log) == 1 + len(compaction_cases.LAYOUTS)  # the tensor that keeps nothing has no task


def test_nothing_is_launched_for_nothing() -> None:
    bindings = cuda_tools.bindings()
    bindings.log()
    empty, no_dims = torch.empty(0, dtype=torch.int64), [-1, -1]
    assert bindings.ops.compact_channels([torch.empty(3, 0)], [empty, empty], no_dims)[0].shape == (3, 0)
    mask, values = bindings.ops.pack_sparse(torch.empty(0))
    assert (mask.numel(), values.numel(), bindings.ops.unpack_sparse(mask, values, 0).numel()) == (0, 0, 0)
    bindings.ops.apply_mask([torch.empty(0)], torch.zeros(8, dtype=torch.uint8), [0])
    assert bindings.log() == []


def test_a_grid_is_no_larger_than_the_gpu_holds_at_once() -> None:
    """2 SMs of 1536 threads: what fills them with blocks of 256 is 12, and half of 2048 threads an SM is 8."""
    bindings = cuda_tools.bindings()
    bindings.log()
    bindings.ops.apply_mask([torch.ones(100_000)], torch.zeros(12504, dtype=torch.uint8), [0])
    bindings.ops.pack_sparse(torch.ones(100_000))
    grids = [int(re.findall(r"<<<(\d+), 256>>>", line)[0]) for line in bindings.log()]
    assert grids == [12, 8]


def test_values_hold_no_more_memory_than_they_need() -> None:
    _, values = cuda_tools.bindings().ops.pack_sparse(torch.eye(64).flatten())
    assert values.untyped_storage().nbytes() == 64 * 4


@pytest.mark.parametrize("change", [-1, 1])
def test_a_mask_that_does_not_fit_the_values_is_refused(change: int) -> None:
    mask, values = reference.pack_sparse(torch.eye(64).flatten())
    wrong = values[:change] if change < 0 else torch.cat([values, values[:change]])
    text = f"unpack_sparse: the mask has 64 bits set, but there are {64 + change} values"
    with pytest.raises(RuntimeError) as error:
        cuda_tools.bindings().ops.unpack_sparse(mask, wrong, 4096)
    assert str(error.value).splitlines()[0] == text


def test_a_strided_tensor_of_nine_dims_is_refused() -> None:
    theta = torch.ones(1, 1, 1, 1, 1, 1, 1, 3, 2).transpose(-1, -2)
    with pytest.raises(RuntimeError, match="more than 8 dimensions"):
        cuda_tools.bindings().ops.apply_mask([theta], torch.zeros(8, dtype=torch.uint8), [0])
