"""What the sweeps over arenas share: launch shapes, aligned views, and the order-preserving keys of floats.

A sweep cuts an arena into *items*, which the programs take in turn (item, item + programs, ...):

    | head |  block 0  |  block 1  | ... | tail |         items: the whole blocks, then head and tail in pieces of EDGE

Whole blocks are read without a mask, because Triton loads 128 bits at once only where it can prove that a mask agrees
on all of them, which no ragged size allows. Head (the first HEAD elements) and tail are read under one, in small code.
A branch is a slice of the arena and may begin at any element: `aligned` steps back to a 16-byte boundary, and the
elements before the slice, `lead` of them, are masked out with the head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

HEAD = tl.constexpr(32)  # 128 bytes of float32: whole blocks begin on a line of the cache
BINS = tl.constexpr(1 << 16)
NAN_BIN = tl.constexpr((1 << 16) - 1)
# Copies of the histogram, shared by the programs in turn. Atomics on one address wait for each other; scores crowd
# into a few hundred bins, so a copy for each eighth program divides the queue by eight, in 4 MB that stay in the L2.
COPIES = 8

OPTIONS: dict[str, Any] = {"enable_fp_fusion": False}  # every product is rounded, as the reference's is

TYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}


# ---- launch table ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """Launch shape of a sweep, per op and class of GPU.

    block      float32 elements a program takes at once; half as many float64
    per_sm     programs launched for each SM: all of them run at once, so that their shares of the items end together
    registers  a thread's most: what an SM's 65536 leave to each thread of that many programs
    warps      of 32 threads a program
    edge       elements of head and tail at once
    """

    block: int
    per_sm: int
    registers: int
    warps: int = 4
    edge: int = 256

    def options(self) -> dict[str, Any]:
        """As launch options."""
        return OPTIONS | {"num_warps": self.warps, "maxnreg": self.registers}


# "hbm": sm_80, 90, 100, which want 32 KB in flight on an SM (3 TB/s, a microsecond, 100 SMs). A thread has block / 128
# elements of one array on the way, of two at least in the first two ops: 8 x 128 threads x 64 bytes x 2 = 128 KB in
# indicator_sums, 40 KB in alter_score, 32 KB in kth_value, 64 KB in make_mask, 32 KB in apply_mask.
# "gddr": sm_86, 89, 120, with 1536 threads and a third of that bandwidth an SM: fewer programs do. Blocks and registers
# are the same, so one compiled form serves both classes.
SWEEPS: dict[str, dict[str, Sweep]] = {
    "hbm": {
        "indicator_sums": Sweep(block=2048, per_sm=8, registers=64),
        "alter_score": Sweep(block=1024, per_sm=5, registers=96),
        "kth_value": Sweep(block=2048, per_sm=4, registers=128),
        "make_mask": Sweep(block=2048, per_sm=8, registers=64),
        "apply_mask": Sweep(block=1024, per_sm=8, registers=64),
    },
    "gddr": {
        "indicator_sums": Sweep(block=2048, per_sm=4, registers=64),
        "alter_score": Sweep(block=1024, per_sm=5, registers=96),
        "kth_value": Sweep(block=2048, per_sm=3, registers=128),
        "make_mask": Sweep(block=2048, per_sm=6, registers=64),
        "apply_mask": Sweep(block=1024, per_sm=6, registers=64),
    },
}
GDDR = ((8, 6), (8, 7), (8, 9), (12, 0), (12, 1))
# The interpreter takes about a millisecond an item, whatever its size; tests want several blocks and programs.
INTERPRETED = Sweep(block=256, per_sm=3, registers=0, edge=128)
INTERPRETED_SMS = 1
CHUNK, INTERPRETED_CHUNK = 4096, 1 << 14  # counts that `seek` reads at once


def sweep(op: str, tensor: Tensor) -> Sweep:
    """The launch shape of an op's sweep on the tensor's device."""
    if not tensor.is_cuda:
        return INTERPRETED
    return SWEEPS["gddr" if torch.cuda.get_device_capability(tensor.device) in GDDR else "hbm"][op]


def programs(shape: Sweep, items: int, tensor: Tensor) -> tuple[int]:
    """The grid of a sweep: a multiple of the SM count, unless there are fewer items."""
    sms = torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else INTERPRETED_SMS
    return (max(1, min(items, shape.per_sm * sms)),)


def block_of(shape: Sweep, dtype: torch.dtype) -> int:
    """Elements a block: the bytes a thread has on the way are those of the float32 table."""
    return shape.block // 2 if dtype.itemsize == 8 else shape.block


def chunk(tensor: Tensor) -> int:
    return CHUNK if tensor.is_cuda else INTERPRETED_CHUNK


def items(size: int, block: int, edge: int) -> tuple[int, int]:
    """How many whole blocks and how many pieces of head and tail a sweep over `size` elements has."""
    full = max(0, size - HEAD.value) // block
    return full, triton.cdiv(size - full * block, edge)


def device_of(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device; this makes it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def aligned(arenas: Sequence[Tensor]) -> tuple[list[Tensor], int]:
    """Views that begin `lead` elements earlier, all on a 16-byte boundary, and lead; as they are if no lead does it."""
    for lead in range(8):
        if all(x.storage_offset() >= lead and (x.data_ptr() - lead * x.element_size()) % 16 == 0 for x in arenas):
            return [x.as_strided((x.numel() + lead,), (1,), x.storage_offset() - lead) for x in arenas], lead
    return list(arenas), 0


# ---- device functions -----------------------------------------------------------------------------------------------


@triton.jit
def edge_offsets(item, full, BLOCK: tl.constexpr, EDGE: tl.constexpr):
    """Offsets of a piece of head and tail: they follow each other as if the `full` whole blocks were not there."""
    offs = item * EDGE + tl.arange(0, EDGE)
    return offs + tl.where(offs >= HEAD, full * BLOCK, 0)


@triton.jit
def load(pointers, valid, MASKED: tl.constexpr):
    return tl.load(pointers, mask=valid, other=0) if MASKED else tl.load(pointers)


@triton.jit
def store(pointers, values, valid, MASKED: tl.constexpr):
    if MASKED:
        tl.store(pointers, values, mask=valid)
    else:
        tl.store(pointers, values)


@triton.jit
def key_of(x):
    """The unsigned integer that orders as the float does: sign bit flipped, or all bits of a negative; -0 is +0."""
    if x.dtype == tl.float32:
        bits = (x + 0.0).to(tl.int32, bitcast=True)
        key = (bits ^ ((bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)
    else:
        bits = (x + 0.0).to(tl.int64, bitcast=True)
        key = (bits ^ ((bits >> 63) | -0x8000000000000000)).to(tl.uint64, bitcast=True)
    return key


@triton.jit
def value_of(key):
    """The float of a key."""
    if key.dtype == tl.uint32:
        bits = key.to(tl.int32, bitcast=True)
        x = (bits ^ ((~bits >> 31) | -0x80000000)).to(tl.float32, bitcast=True)
    else:
        bits = key.to(tl.int64, bitcast=True)
        x = (bits ^ ((~bits >> 63) | -0x8000000000000000)).to(tl.float64, bitcast=True)
    return x


@triton.jit
def add_top_digits(histogram, score, valid, COPIES: tl.constexpr):
    """Counts the top 16 bits of each score's key; NaN as the largest key. histogram: int64 [COPIES, BINS]."""
    key = key_of(score)
    digit = (key >> (key.dtype.primitive_bitwidth - 16)).to(tl.int32)
    digit = tl.where(score == score, digit, NAN_BIN)
    add_counts(histogram + tl.program_id(0) % COPIES * BINS, digit, valid, BINS // 2)


@triton.jit
def add_counts(counts, digit, valid, ZERO: tl.constexpr):
    """counts[digit] += 1 for each valid lane.

    The bin of zero, where dead weights crowd, is counted by a reduction and added once: a million atomics on one
    address would take turns. The other bins get an atomic a lane; nothing reads them back, so none is waited for.
    """
    zero = digit == ZERO
    tl.atomic_add(counts + digit, 1, mask=valid & ~zero, sem="relaxed")
    zeros = tl.sum((valid & zero).to(tl.int32))
    tl.atomic_add(counts + ZERO, zeros.to(tl.int64), mask=zeros > 0, sem="relaxed")


@triton.jit
def seek(first, step, size, rank, CHUNK: tl.constexpr):
    """Where in counts[0], counts[step], ... (`size` of them) the rank-th element is counted, ranks from 1.

    Returns: its place, its rank among those counted there, and the total. One program, one reading, no early way out.
    Where the total is below the rank the place lies past the end.
    """
    lanes = tl.arange(0, CHUNK)
    total = rank * 0
    before = total
    begin = total
    for c in range(0, size, CHUNK):
        at = c + lanes
        total += tl.sum(tl.load(first + at * step, mask=at < size, other=0).to(tl.int64))
        before = tl.where(total < rank, total, before)
        begin = tl.where(total < rank, c + CHUNK, begin)
    at = begin + lanes
    upto = before + tl.cumsum(tl.load(first + at * step, mask=at < size, other=0).to(tl.int64))
    place = begin + tl.sum((upto < rank).to(tl.int64))
    before = tl.max(tl.where(upto < rank, upto, before))
    return place, rank - before, total
