"""The strict interpreter reports a planted bug of every kind, and lets a clean kernel pass."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from tests.kernels.interpreted.strict import POISON, Strict, StrictError

BLOCK = 16


@triton.jit
def _double_kernel(x, out, size, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + offs, 2 * tl.load(x + offs, mask=offs < size, other=0.0), mask=offs < size)


@triton.jit
def _many_features_kernel(pairs, out, counts, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x = tl.load(pairs[0] + offs[:, None] * BLOCK + offs[None, :])
    y = tl.load(pairs[1] + offs[:, None] * BLOCK + offs[None, :])
    z = tl.dot(x, y, input_precision="ieee")
    row = tl.sum(z, axis=1) + tl.cumsum(offs.to(tl.float32), axis=0)
    tl.store(out + tl.program_id(0) * BLOCK + offs, row)
    tl.atomic_add(counts + offs % 4, 1)
    tl.atomic_cas(counts, -1, 0)


@triton.jit
def _unmasked_load_kernel(x, out, size, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + offs, tl.load(x + offs), mask=offs < size)


@triton.jit
def _unmasked_store_kernel(x, out, size, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + offs, tl.load(x + offs, mask=offs < size, other=0.0))


@triton.jit
def _out_of_bounds_atomic_kernel(counts, BLOCK: tl.constexpr):
    tl.atomic_add(counts + tl.arange(0, BLOCK), 1)


@triton.jit
def _no_other_kernel(x, out, size, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(out, tl.sum(tl.load(x + offs, mask=offs < size)))


@triton.jit
def _overlapping_store_kernel(x, out, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * (BLOCK - 1) + tl.arange(0, BLOCK)
    tl.store(out + offs, tl.load(x + offs))


@triton.jit
def _chained_kernel(x):
    i = tl.program_id(0)
    tl.store(x + i + 1, tl.load(x + i) + 1)


@triton.jit
def _slot_kernel(counter, out):
    slot = tl.atomic_add(counter, 1)
    tl.store(out + slot, tl.program_id(0))


@triton.jit
def _bfloat16_kernel(x, out, BLOCK: tl.constexpr, OP: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    a = tl.load(x + offs)
    if OP == "add":
        a = a + a
    elif OP == "negate":
        a = -a
    elif OP == "compare":
        a = tl.where(a > a, a, a)
    elif OP == "sum":
        a = a + tl.sum(a)
    else:
        square = tl.load(x + offs[:, None] * BLOCK + offs[None, :])
        a = tl.sum(tl.dot(square, square), axis=0).to(tl.bfloat16)
    tl.store(out + offs, a)


@triton.jit
def _cast_kernel(x, out, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(out + offs, tl.load(x + offs).to(tl.bfloat16))


def test_a_clean_kernel_passes(strict: Strict) -> None:
    for size in (1, 15, 16, 17, 50):
        x = torch.randn(size)
        out = torch.empty(size)
        _double_kernel[(triton.cdiv(size, BLOCK),)](x, out, size, BLOCK)
        assert torch.equal(out, 2 * x)
    assert strict.history[-1] == ("_double_kernel", (4, 1, 1))


def test_dots_reductions_scans_atomics_and_tuples_pass(strict: Strict) -> None:
    x, y = torch.randn(2, BLOCK, BLOCK)
    counts = torch.zeros(4, dtype=torch.int32)
    out = torch.empty(2, BLOCK)
    _many_features_kernel[(2,)]((x, y), out, counts, BLOCK)
    torch.testing.assert_close(out[1], (x @ y).sum(1) + torch.arange(BLOCK).cumsum(0))
    assert counts.tolist() == [8, 8, 8, 8]


def test_an_out_of_bounds_load_is_reported(strict: Strict) -> None:
    with pytest.raises(StrictError, match=r"_unmasked_load_kernel, program \(1, 0, 0\).*load: x at element 20 of 20"):
        _unmasked_load_kernel[(2,)](torch.randn(20), torch.empty(32), 20, BLOCK)


def test_an_out_of_bounds_store_is_reported(strict: Strict) -> None:
    with pytest.raises(StrictError, match=r"_unmasked_store_kernel, program \(1, 0, 0\).*store: out at element 20"):
        _unmasked_store_kernel[(2,)](torch.randn(20), torch.empty(20), 20, BLOCK)


def test_a_neighbour_in_the_same_storage_is_out_of_bounds(strict: Strict) -> None:
    """A branch is a slice of the arena: beyond it lies valid memory of another branch, even another argument."""
    arena = torch.randn(64)
    with pytest.raises(StrictError, match="out of bounds store: out at element 20"):
        _unmasked_store_kernel[(2,)](arena[40:60], arena[:20], 20, BLOCK)
    with pytest.raises(StrictError, match="out of bounds store: out at element 20"):
        _unmasked_store_kernel[(2,)](arena[20:40], arena[:20], 20, BLOCK)


def test_an_out_of_bounds_atomic_is_reported(strict: Strict) -> None:
    with pytest.raises(StrictError, match="out of bounds atomic: counts at element 10"):
        _out_of_bounds_atomic_kernel[(1,)](torch.zeros(10, dtype=torch.int32), BLOCK)


def test_masked_lanes_without_other_are_poisoned(strict: Strict) -> None:
    out = torch.zeros(1)
    _no_other_kernel[(1,)](torch.ones(10), out, 10, BLOCK)
    assert out.isnan()
    total = torch.zeros(1, dtype=torch.int32)
    _no_other_kernel[(1,)](torch.ones(10, dtype=torch.int32), total, 10, BLOCK)
    poison = int.from_bytes(bytes([POISON] * 4), "little", signed=True)
    assert (int(total) - 10 - 6 * poison) % 2**32 == 0


def test_a_write_conflict_is_reported(strict: Strict) -> None:
    with pytest.raises(StrictError, match=r"race: stores out at element 15, which program \(\d, 0, 0\) stores"):
        _overlapping_store_kernel[(2,)](torch.randn(31), torch.empty(31), BLOCK)


@pytest.mark.parametrize("seed", range(4))
def test_a_load_of_what_another_program_stores_is_reported_in_any_order(strict: Strict, seed: int) -> None:
    strict.seed = seed
    with pytest.raises(StrictError, match=r"_chained_kernel.*race: (stores|loads) x at element"):
        _chained_kernel[(3,)](torch.zeros(4))


def test_dependence_on_the_grid_order_is_reported(strict: Strict) -> None:
    """Slots handed out by an atomic: no race, and still another result for every order."""

    def run() -> torch.Tensor:
        out = torch.empty(8, dtype=torch.int32)
        _slot_kernel[(8,)](torch.zeros(1, dtype=torch.int32), out)
        return out

    with pytest.raises(StrictError, match=r"depends on the grid order.*_slot_kernel"):
        strict.any_order(run)
    x = torch.randn(50)

    def clean() -> torch.Tensor:
        out = torch.empty(50)
        _double_kernel[(4,)](x, out, 50, BLOCK)
        return out

    assert torch.equal(strict.any_order(clean), 2 * x)


@pytest.mark.parametrize("op", ["add", "negate", "compare", "sum", "dot"])
def test_bfloat16_arithmetic_is_refused(strict: Strict, op: str) -> None:
    x = torch.randn(BLOCK, BLOCK).bfloat16()
    with pytest.raises(StrictError, match=r"_bfloat16_kernel.*bfloat16 arithmetic"):
        _bfloat16_kernel[(1,)](x, torch.empty_like(x), BLOCK, op)


def test_casts_to_bfloat16_round_to_nearest_even(strict: Strict) -> None:
    x = torch.tensor([1.00390625, 1.01171875, 1.005, -3.3, 1e-40, float("inf"), float("nan"), 3.4e38] * 2)
    out = torch.empty(BLOCK, dtype=torch.bfloat16)
    _cast_kernel[(1,)](x, out, BLOCK)
    torch.testing.assert_close(out, x.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_new_tensors_are_poisoned(strict: Strict) -> None:
    x = torch.zeros(3)
    assert all(new.isnan().all() for new in (torch.empty(3), torch.empty_like(x), x.new_empty(3)))
    assert (torch.empty(3, dtype=torch.uint8) == POISON).all()


def test_nothing_stays_installed() -> None:
    with Strict().installed():
        pass
    assert torch.empty.__module__ != "tests.kernels.interpreted.strict"
    out = torch.empty(BLOCK)
    _overlapping_store_kernel[(1,)](torch.ones(BLOCK), out, BLOCK)
    assert (out == 1).all()
