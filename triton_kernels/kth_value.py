"""Where to cut so that exactly `keep` scores stay: a radix select by 16-bit digits of the keys, without sort or copy.

    digit 0    its histogram comes from alter_score, or from a sweep; one program seeks the bin of the threshold
    digit 1    the one sweep over the arena: marks the elements of that bin (a bit each) and counts their next digit
    digits 2.. look at marked elements only (float64), unmark what falls out
    ties       counts per block the elements equal to the threshold; one program seeks the block, and in it the cut

fp32: one reading of the arena (4 bytes an element; two without a histogram) and two of 1/32 of it. Rank and digits stay
on the device; the host waits once, at the end, to learn whether there was NaN. Only integers are added: exact, and the
same in every order. A tile has rows of 32 elements, and a row is one word of the marks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastalter.triton_kernels import common
from fastalter.triton_kernels.budget import Budget, Specialisation
from fastalter.triton_kernels.common import add_counts, add_top_digits, edge_offsets, key_of, load, seek, value_of

RANK, PREFIX, NANS, TOTAL = (tl.constexpr(place) for place in range(4))  # in the state, int64 [4]


@triton.jit(do_not_specialize=["full", "items", "lead", "size"])
def _count_kernel(
    score,
    histogram,  # int64 [COPIES, BINS]
    full: tl.int64,
    items: tl.int64,
    lead: tl.int64,
    size: tl.int64,
    COPIES: tl.constexpr,
    BLOCK: tl.constexpr,
    EDGE: tl.constexpr,
):
    for i in range(tl.program_id(0).to(tl.int64), items, tl.num_programs(0)):
        if i < full:
            offs = common.HEAD + i * BLOCK + tl.arange(0, BLOCK)
            add_top_digits(histogram, tl.load(score + offs), offs >= 0, COPIES)
        else:
            edge = edge_offsets(i - full, full, BLOCK, EDGE)
            valid = (edge >= lead) & (edge < size)
            add_top_digits(histogram, tl.load(score + edge, mask=valid, other=0.0), valid, COPIES)


@triton.jit
def _descend_kernel(counts, state, FIRST: tl.constexpr, CHUNK: tl.constexpr):
    """Appends to the prefix the digit of the rank-th element from the top; rank becomes its rank in that bin."""
    place, rank, total = seek(counts + common.NAN_BIN, -1, common.BINS, tl.load(state + RANK), CHUNK)
    tl.store(state + PREFIX, (tl.load(state + PREFIX) << 16) | (common.NAN_BIN - place))
    tl.store(state + RANK, rank)
    if FIRST:
        tl.store(state + NANS, tl.load(counts + common.NAN_BIN))
        tl.store(state + TOTAL, total)


@triton.jit
def _narrow_tile(
    score, marks, counts, prefix, begin, size, DIGIT: tl.constexpr, LAST: tl.constexpr, MASKED: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Of the candidates among TILE elements, keeps those that start with the prefix; returns how many there are."""
    bit = tl.arange(0, 32)[None, :]
    words = begin // 32 + tl.arange(0, TILE // 32)
    offs = words[:, None] * 32 + bit
    # [TILE / 32, 32]
    if DIGIT == 1:
        candidate = offs < size
        b_key = key_of(load(score + offs, candidate, MASKED))
    else:
        candidate = ((tl.load(marks + words)[:, None] >> bit) & 1) != 0
        b_key = key_of(tl.load(score + offs, mask=candidate, other=0.0))
    width: tl.constexpr = b_key.dtype.primitive_bitwidth
    found = candidate & ((b_key >> (width - 16 * DIGIT)) == prefix.to(b_key.dtype))
    if not LAST:
        tl.store(marks + words, tl.sum(found.to(tl.int32) << bit, axis=1))
        digit = (b_key >> (width - 16 * DIGIT - 16)).to(tl.int32) & 0xFFFF
        add_counts(counts, digit, found, 0)
    return tl.sum(tl.sum(found.to(tl.int32), axis=1), axis=0)


@triton.jit(do_not_specialize=["size"])
def _narrow_kernel(
    score,
    marks,  # int32 [blocks * BLOCK / 32]: bit i % 32 of word i / 32 belongs to element i
    counts,  # int64 [BINS]: of the digit after the prefix
    ties,  # int32 [blocks]: written with the last digit
    state,
    size: tl.int64,
    DIGIT: tl.constexpr,  # digits in the prefix
    LAST: tl.constexpr,
    BLOCK: tl.constexpr,
    EDGE: tl.constexpr,
):
    prefix = tl.load(state + PREFIX)
    for i in range(tl.program_id(0).to(tl.int64), tl.cdiv(size, BLOCK), tl.num_programs(0)):
        if (i + 1) * BLOCK <= size:
            found = _narrow_tile(score, marks, counts, prefix, i * BLOCK, size, DIGIT, LAST, False, BLOCK)
        else:
            found = 0
            for j in range(0, BLOCK, EDGE):
                found += _narrow_tile(score, marks, counts, prefix, i * BLOCK + j, size, DIGIT, LAST, True, EDGE)
        if LAST:
            tl.store(ties + i, found)


@triton.jit(do_not_specialize=["size"])
def _cut_kernel(score, ties, state, threshold, cut, size: tl.int64, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    """Threshold and cut: the rank-th of the elements equal to the threshold, in the order of their indices."""
    prefix = tl.load(state + PREFIX)
    i, rank, _ = seek(ties, 1, tl.cdiv(size, BLOCK), tl.load(state + RANK), CHUNK)
    offs = i * BLOCK + tl.arange(0, BLOCK)
    b_key = key_of(tl.load(score + offs, mask=offs < size, other=0.0))
    tied = (offs < size) & (b_key == prefix.to(b_key.dtype))
    b_rank = tl.cumsum(tied.to(tl.int32), axis=0)
    tl.store(cut, tl.max(tl.where(tied & (b_rank == rank), offs, -1)))
    tl.store(threshold, value_of(prefix.to(b_key.dtype)))


def _top_digits(score: Tensor) -> Tensor:
    """The histogram of the scores' leading digits, int64 [BINS]."""
    (score,), lead = common.aligned([score])
    shape = common.sweep("kth_value", score)
    block = common.block_of(shape, score.dtype)
    full, edges = common.items(score.numel(), block, shape.edge)
    copies = torch.zeros((common.COPIES, common.BINS.value), dtype=torch.int64, device=score.device)
    _count_kernel[common.programs(shape, full + edges, score)](
        *(score, copies, full, full + edges, lead, score.numel(), common.COPIES, block, shape.edge),
        **shape.options(),
    )
    return copies.sum(0)


def _select(score: Tensor, state: Tensor, threshold: Tensor, cut: Tensor) -> None:
    """From the first digit on."""
    size, digits = score.numel(), score.element_size() // 2
    shape = common.sweep("kth_value", score)
    block = common.block_of(shape, score.dtype)
    blocks = triton.cdiv(size, block)
    marks = torch.empty(blocks * block // 32, dtype=torch.int32, device=score.device)
    ties = torch.empty(blocks, dtype=torch.int32, device=score.device)
    counts = torch.empty(common.BINS.value, dtype=torch.int64, device=score.device)
    for digit in range(1, digits + 1):
        last = digit == digits
        counts.zero_()
        _narrow_kernel[common.programs(shape, blocks, score)](
            *(score, marks, counts, ties, state, size, digit, last, block, shape.edge),
            **shape.options(),
        )
        if not last:
            _descend_kernel[(1,)](counts, state, False, common.chunk(state), num_warps=8, **common.OPTIONS)
    _cut_kernel[(1,)](
        score, ties, state, threshold, cut, size, block, common.chunk(state), num_warps=8, **common.OPTIONS
    )


def launch_kth_value(score: Tensor, keep: int, histogram: Tensor | None = None) -> tuple[Tensor, Tensor]:
    size = score.numel()
    threshold = torch.full((), float("inf"), dtype=score.dtype, device=score.device)
    cut = torch.full((), -1, dtype=torch.int64, device=score.device)
    with common.device_of(score):
        if histogram is None and size > 0:
            histogram = _top_digits(score)
        if histogram is None:
            return threshold, cut
        state = torch.tensor([keep, 0, 0, 0], dtype=torch.int64, device=score.device)
        _descend_kernel[(1,)](histogram, state, True, common.chunk(state), num_warps=8, **common.OPTIONS)
        if keep > 0:
            _select(score, state, threshold, cut)
    _, _, nans, total = state.tolist()
    if nans:
        raise RuntimeError("kth_value: the scores hold NaN, which has no rank")
    if total != size:
        raise RuntimeError(f"kth_value: the histogram counts {total} scores, but there are {size}")
    return threshold, cut


def _specialisations() -> Iterator[Specialisation]:
    shape = common.SWEEPS["hbm"]["kth_value"]
    for dtype in (torch.float32, torch.float64):
        name, width, block = common.TYPES[dtype], dtype.itemsize, common.block_of(shape, dtype)
        digits = width // 2
        blocks = {"BLOCK": block, "EDGE": shape.edge}
        pointers = {"score": f"*{name}", "marks": "*i32", "counts": "*i64", "ties": "*i32", "state": "*i64"}
        yield Specialisation(
            op="kth_value",
            form=f"{name}, leading digits",
            kernel=_count_kernel,
            signature={"score": f"*{name}", "histogram": "*i64"}
            | dict.fromkeys(("full", "items", "lead", "size"), "i64")
            | dict.fromkeys(("COPIES", *blocks), "constexpr"),
            constants={"COPIES": common.COPIES} | blocks,
            budget=Budget(registers=80 if width == 4 else 64, shared=8192),
            divisible=("score", "histogram"),
            num_warps=shape.warps,
            minimum=width,
            moved=width,
            in_flight=width * block // (32 * shape.warps),
            options=shape.options(),
        )
        registers = {"mark": 112 if width == 4 else 96, "narrow": 96, "ties": 48}
        for form, digit in (("mark", 1), *([("narrow", 2)] if digits > 2 else []), ("ties", digits)):
            yield Specialisation(
                op="kth_value",
                form=f"{name}, {form}",
                kernel=_narrow_kernel,
                signature=pointers | {"size": "i64"} | dict.fromkeys(("DIGIT", "LAST", *blocks), "constexpr"),
                constants={"DIGIT": digit, "LAST": digit == digits} | blocks,
                budget=Budget(registers[form], shared=8192, wide=digit == 1),
                divisible=tuple(pointers),
                num_warps=shape.warps,
                minimum=width if digit == 1 else None,
                moved=width + 1 / 8 if digit == 1 else None,
                in_flight=width * block // (32 * shape.warps) if digit == 1 else None,
                options=shape.options(),
            )
        yield Specialisation(
            op="kth_value",
            form=f"{name}, cut",
            kernel=_cut_kernel,
            signature={name: pointers[name] for name in ("score", "ties", "state")}
            | {"threshold": f"*{name}", "cut": "*i64", "size": "i64", "BLOCK": "constexpr", "CHUNK": "constexpr"},
            constants={"BLOCK": block, "CHUNK": common.CHUNK},
            budget=Budget(registers=80 if width == 4 else 96, shared=256, wide=False),
            divisible=("score", "ties", "state", "threshold", "cut"),
            num_warps=8,
            options=common.OPTIONS,
        )
    yield Specialisation(
        op="kth_value",
        form="descend",
        kernel=_descend_kernel,
        signature={"counts": "*i64", "state": "*i64", "FIRST": "constexpr", "CHUNK": "constexpr"},
        constants={"FIRST": True, "CHUNK": common.CHUNK},
        budget=Budget(registers=120, shared=1024, wide=False),
        divisible=("counts", "state"),
        num_warps=8,
        options=common.OPTIONS,
    )


SPECIALISATIONS = list(_specialisations())
