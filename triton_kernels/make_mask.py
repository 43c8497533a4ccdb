"""Bit-packed mask of the scores that stay (above the threshold, or equal to it up to `cut`), and counts per segment.

One pass: 4 bytes read and 1/8 written an element (fp32). A tile has rows of 32 elements, and a row is one word of the
mask. Each block also leaves how many it keeps; the prefix sums of that give, for any edge of a segment, how many are
kept below it from one block's words: one small program an edge, whatever the segments' sizes. Integers only.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastalter.triton_kernels import common
from fastalter.triton_kernels.budget import Budget, Specialisation
from fastalter.triton_kernels.common import load, store


@triton.jit
def _mask_tile(score, mask, threshold, cut, begin, size, words, MASKED: tl.constexpr, TILE: tl.constexpr):
    """Writes the words of TILE elements; returns how many stay."""
    bit = tl.arange(0, 32)[None, :]
    word = begin // 32 + tl.arange(0, TILE // 32)
    offs = word[:, None] * 32 + bit
    # [TILE / 32, 32]
    valid = offs < size
    b_s = load(score + offs, valid, MASKED)
    keep = (b_s > threshold) | ((b_s == threshold) & (offs <= cut))
    if MASKED:
        keep = keep & valid
    b_word = tl.sum(keep.to(tl.int32) << bit, axis=1)
    store(mask + word, b_word, word < words, MASKED)
    return tl.sum(tl.sum(keep.to(tl.int32), axis=1), axis=0)


@triton.jit(do_not_specialize=["size", "words"])
def _make_mask_kernel(
    score,
    threshold,
    cut,
    mask,  # int32 [words]
    kept,  # int64 [blocks]
    size: tl.int64,
    words: tl.int64,
    BLOCK: tl.constexpr,
    EDGE: tl.constexpr,
):
    t = tl.load(threshold)
    last = tl.load(cut)
    for i in range(tl.program_id(0).to(tl.int64), tl.cdiv(size, BLOCK), tl.num_programs(0)):
        if (i + 1) * BLOCK <= size:
            count = _mask_tile(score, mask, t, last, i * BLOCK, size, words, False, BLOCK)
        else:
            count = 0
            for j in range(0, BLOCK, EDGE):
                count += _mask_tile(score, mask, t, last, i * BLOCK + j, size, words, True, EDGE)
        tl.store(kept + i, count.to(tl.int64))


@triton.jit(do_not_specialize=["words"])
def _kept_below_kernel(
    mask,  # int32 [words]
    before,  # int64 [blocks + 1]: kept before each block
    edges,  # int64 [K + 1]
    below,  # int64 [K + 1]: kept before each edge
    words: tl.int64,
    BLOCK: tl.constexpr,
):
    i_e = tl.program_id(0).to(tl.int64)
    edge = tl.load(edges + i_e)
    block = edge // BLOCK
    bit = tl.arange(0, 32)[None, :]
    word = block * (BLOCK // 32) + tl.arange(0, BLOCK // 32)
    # [BLOCK / 32, 32]
    b_word = tl.load(mask + word, mask=word < words, other=0)
    kept = ((b_word[:, None] >> bit) & 1) * (word[:, None] * 32 + bit < edge).to(tl.int32)
    count = tl.sum(tl.sum(kept, axis=1), axis=0)
    tl.store(below + i_e, tl.load(before + block) + count)


def launch_make_mask(score: Tensor, threshold: Tensor, cut: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
    size = score.numel()
    mask = torch.empty(triton.cdiv(size, 64) * 8, dtype=torch.uint8, device=score.device)
    if size == 0:
        return mask, torch.zeros_like(segments[1:])
    shape = common.sweep("make_mask", score)
    block = common.block_of(shape, score.dtype)
    blocks, words = triton.cdiv(size, block), mask.view(torch.int32)
    before = torch.zeros(blocks + 1, dtype=torch.int64, device=score.device)
    below = torch.empty_like(segments)
    with common.device_of(score):
        _make_mask_kernel[common.programs(shape, blocks, score)](
            *(score, threshold, cut, words, before[1:], size, words.numel(), block, shape.edge),
            **shape.options(),
        )
        before = before.cumsum(0)
        _kept_below_kernel[(segments.numel(),)](
            words, before, segments, below, words.numel(), block, num_warps=4, **common.OPTIONS
        )
    return mask, below.diff()


def _specialisation(dtype: torch.dtype) -> Specialisation:
    shape = common.SWEEPS["hbm"]["make_mask"]
    block, name = common.block_of(shape, dtype), common.TYPES[dtype]
    pointers = {"score": f"*{name}", "threshold": f"*{name}", "cut": "*i64", "mask": "*i32", "kept": "*i64"}
    return Specialisation(
        op="make_mask",
        form=name,
        kernel=_make_mask_kernel,
        signature=pointers | {"size": "i64", "words": "i64", "BLOCK": "constexpr", "EDGE": "constexpr"},
        constants={"BLOCK": block, "EDGE": shape.edge},
        budget=Budget(registers=shape.registers, shared=256),
        divisible=("score", "threshold", "cut", "mask"),
        num_warps=shape.warps,
        minimum=dtype.itemsize + 1 / 8,
        moved=dtype.itemsize + 1 / 8,
        in_flight=dtype.itemsize * block // (32 * shape.warps),
        options=shape.options(),
    )


SPECIALISATIONS = [
    _specialisation(torch.float32),
    _specialisation(torch.float64),
    Specialisation(
        op="make_mask",
        form="kept below",
        kernel=_kept_below_kernel,
        signature={"mask": "*i32"}
        | dict.fromkeys(("before", "edges", "below"), "*i64")
        | {"words": "i64", "BLOCK": "constexpr"},
        constants={"BLOCK": common.SWEEPS["hbm"]["make_mask"].block},
        budget=Budget(registers=48, shared=256, wide=False),
        divisible=("mask", "before", "below"),
        num_warps=4,
        options=common.OPTIONS,
    ),
]
