"""theta becomes +0.0, in place, where its bit of the mask is 0.

One launch a tensor, one pass: every element read and written once (8 1/8 bytes, fp32). The sweep follows memory, not
the logical order, so that accesses are wide whatever the strides; each element finds its bit from its place in memory.
Elements move as integers of their width: the kept ones keep every bit, and one kernel serves two dtypes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastalter.triton_kernels import common
from fastalter.triton_kernels.budget import Budget, Specialisation
from fastalter.triton_kernels.common import edge_offsets, load, store

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit
def _apply_item(
    theta, mask, bit, shape, strides, offs, lead, valid, DIMS: tl.constexpr, INDEX: tl.constexpr, MASKED: tl.constexpr
):
    # [BLOCK] or [EDGE]
    rest = (offs - lead).to(INDEX)
    place = tl.zeros_like(rest)
    for d in tl.static_range(DIMS - 1, 0, -1):
        place += rest % shape[d] * strides[d]
        rest = rest // shape[d]
    b_bit = bit + (place + rest * strides[0]).to(tl.int64)
    b_byte = load(mask + (b_bit >> 3), valid, MASKED).to(tl.int32)
    keep = ((b_byte >> (b_bit & 7).to(tl.int32)) & 1) != 0
    b_theta = tl.where(keep, load(theta + offs, valid, MASKED), 0)
    store(theta + offs, b_theta, valid, MASKED)


@triton.jit(do_not_specialize=["bit", "shape", "strides", "full", "items", "lead", "size"])
def _apply_mask_kernel(
    theta,  # integers, in the order of memory
    mask,
    bit: tl.int64,  # of the first element
    shape,  # DIMS sizes, in the order of memory
    strides,  # DIMS steps in the order of the bits
    full: tl.int64,
    items: tl.int64,
    lead: tl.int64,
    size: tl.int64,
    DIMS: tl.constexpr,
    INDEX: tl.constexpr,  # of a place in the tensor: int32 where that holds it, for its divisions are cheaper
    BLOCK: tl.constexpr,
    EDGE: tl.constexpr,
):
    for i in range(tl.program_id(0).to(tl.int64), items, tl.num_programs(0)):
        if i < full:
            offs = common.HEAD + i * BLOCK + tl.arange(0, BLOCK)
            _apply_item(theta, mask, bit, shape, strides, offs, lead, offs >= 0, DIMS, INDEX, False)
        else:
            edge = edge_offsets(i - full, full, BLOCK, EDGE)
            valid = (edge >= lead) & (edge < size)
            _apply_item(theta, mask, bit, shape, strides, edge, lead, valid, DIMS, INDEX, True)


def in_memory_order(shape: Sequence[int], strides: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A dense tensor's dimensions, outermost in memory first: sizes, and steps in row-major order of its own.

    Neighbours that follow each other in both orders become one, so that a contiguous tensor has one dimension.
    """
    step, dims = 1, []
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        dims.append((stride, size, step))
        step *= size
    merged: list[tuple[int, int]] = []
    for _, size, step in sorted((dim for dim in dims if dim[1] != 1), reverse=True):
        if merged and merged[-1][1] == size * step:
            merged[-1] = (merged[-1][0] * size, step)
        else:
            merged.append((size, step))
    sizes, steps = zip(*merged or [(1, 1)], strict=True)
    return sizes, steps


def launch_apply_mask(theta: Sequence[Tensor], mask: Tensor, offsets: Sequence[int]) -> None:
    for weight, offset in zip(theta, offsets, strict=True):
        if weight.numel() == 0:
            continue
        sizes, steps = in_memory_order(weight.shape, weight.stride())
        flat = weight.detach().view(INTEGERS[weight.element_size()])
        (flat,), lead = common.aligned([flat.as_strided((weight.numel(),), (1,))])
        shape = common.sweep("apply_mask", flat)
        block = common.block_of(shape, weight.dtype)
        full, edges = common.items(flat.numel(), block, shape.edge)
        with common.device_of(flat):
            _apply_mask_kernel[common.programs(shape, full + edges, flat)](
                *(flat, mask, offset, sizes, steps, full, full + edges, lead, flat.numel()),
                *(len(sizes), tl.int32 if flat.numel() < 2**31 else tl.int64, block, shape.edge),
                **shape.options(),
            )


def _specialisation(width: int, dims: int) -> Specialisation:
    shape = common.SWEEPS["hbm"]["apply_mask"]
    block = shape.block // 2 if width == 8 else shape.block
    return Specialisation(
        op="apply_mask",
        form=f"{8 * width} bits, " + ("contiguous" if dims == 1 else f"{dims} dimensions"),
        kernel=_apply_mask_kernel,
        signature={"theta": f"*i{8 * width}", "mask": "*u8", "bit": "i64", "shape": ("i32",) * dims}
        | {"strides": ("i32",) * dims}
        | dict.fromkeys(("full", "items", "lead", "size"), "i64")
        | dict.fromkeys(("DIMS", "INDEX", "BLOCK", "EDGE"), "constexpr"),
        constants={"DIMS": dims, "INDEX": tl.int32, "BLOCK": block, "EDGE": shape.edge},
        budget=Budget(registers=56),
        divisible=("theta", "mask"),
        num_warps=shape.warps,
        minimum=2 * width + 1 / 8,
        moved=2 * width + 1 / 8,
        in_flight=width * block // (32 * shape.warps),
        options=shape.options(),
    )


SPECIALISATIONS = [_specialisation(2, 1), _specialisation(4, 1), _specialisation(8, 1), _specialisation(4, 3)]
