"""Physically smaller weights: kept channels, nonzero values, 2:4 compression. Copies bits, never rounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # element size -> an integer of that size


def compact_channels(weights: Sequence[Tensor], kept: Sequence[Tensor], dims: Sequence[int]) -> list[Tensor]:
    """Each weight t restricted to the indices kept[2t] along dims[2t] and kept[2t+1] along dims[2t+1]; -1: no dim."""
    compacted = []
    for t, weight in enumerate(weights):
        small = weight
        for index, dim in zip(kept[2 * t : 2 * t + 2], dims[2 * t : 2 * t + 2], strict=True):
            if dim >= 0:
                small = small.index_select(dim, index)
        compacted.append(small.clone() if small is weight else small.contiguous())
    return compacted


def pack_sparse(dense: Tensor) -> tuple[Tensor, Tensor]:
    """(mask, values): the elements whose bits are not all zero, in order, and one flag per element.

    -0.0 and NaN count as values, so that unpacking gives back every bit.
    """
    present = dense.view(WORDS[dense.element_size()]) != 0
    size = dense.numel()
    padded = torch.zeros(64 * -(-size // 64), dtype=torch.uint8, device=dense.device)
    padded[:size] = present
    place = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=dense.device)
    mask = (padded.view(-1, 8) * place).sum(1, dtype=torch.uint8)
    return mask, dense[present]


def unpack_sparse(mask: Tensor, values: Tensor, size: int) -> Tensor:
    """The inverse of `pack_sparse`: values at the set bits in order, +0.0 elsewhere."""
    place = torch.arange(8, dtype=torch.uint8, device=mask.device)
    present = (mask.view(-1, 1) >> place & 1).view(-1)[:size].bool()
    bits = int(present.count_nonzero())
    if bits != values.numel():  # a single value would be broadcast
        raise RuntimeError(f"unpack_sparse: the mask has {bits} bits set, but there are {values.numel()} values")
    dense = torch.zeros(size, dtype=values.dtype, device=values.device)
    dense[present] = values
    return dense


def compress_nm(dense: Tensor) -> tuple[Tensor, Tensor]:
    """2:4 (float32: 1:2) compression in CUTLASS's layout: values [m, k/2] and metadata int16 [m, k/16] ([m, k/8]).

    Written from the layout's rules: two-bit indices of the kept entries of each group, four groups to a word. Groups
    with more or fewer nonzeros than two follow torch's table.
    """
    rows, columns = dense.shape
    pairs = dense.dtype == torch.float32
    group = 2 if pairs else 4
    present = (dense != 0).view(rows, columns // group, group)
    m0, m1, _m2, m3 = present.repeat_interleave(2, -1).unbind(-1) if pairs else present.unbind(-1)
    low = torch.where(m0, 0, torch.where(m1, 1, 2))
    high = torch.where(m0 & m1, 1, torch.where(m0 | m1, 2 + m3.long(), 3))
    index = (low // 2).unsqueeze(-1) if pairs else torch.stack([low, high], -1)
    bits = dense.view(WORDS[dense.element_size()])  # a gather of bfloat16 on the CPU changes NaNs
    values = bits.view(rows, columns // group, group).gather(-1, index).view(rows, columns // 2).view(dense.dtype)
    quad = (low | high << 2).view(rows, columns // (4 * group), 4)
    words = quad[..., 0] | quad[..., 1] << 4 | quad[..., 2] << 8 | quad[..., 3] << 12
    return values, _interleave(words).to(torch.int16)


def decompress_nm(values: Tensor, metadata: Tensor) -> Tensor:
    """The inverse of `compress_nm`: dense [m, k], +0.0 where nothing was kept; copies bits.

    The pattern is read off the shapes (metadata [m, k/16] is 2:4, [m, k/8] is 1:2), not off the dtype.
    """
    rows, half = values.shape
    pairs = half == 4 * metadata.shape[1]
    words = metadata.flatten().long()[_places(rows, metadata.shape[1], metadata.device).flatten()].view(rows, -1, 1)
    quads = (words >> torch.arange(0, 16, 4, device=words.device) & 15).view(rows, -1)
    index = (quads & 3).unsqueeze(-1) // 2 if pairs else torch.stack([quads & 3, quads >> 2], -1)
    first = torch.arange(quads.shape[1], device=words.device).view(-1, 1) * (2 if pairs else 4)
    bits = values.view(WORDS[values.element_size()])
    dense = bits.new_zeros(rows, 2 * half).scatter_(1, (index + first).view(rows, half), bits)
    return dense.view(values.dtype)


def _interleave(words: Tensor) -> Tensor:
    """Metadata words in the order the tensor cores read."""
    rows, columns = words.shape
    ordered = torch.empty(rows * columns, dtype=words.dtype, device=words.device)
    ordered[_places(rows, columns, words.device).flatten()] = words.flatten()
    return ordered.view(rows, columns)


def _places(rows: int, columns: int, device: torch.device) -> Tensor:
    """int64 [rows, columns]: where each word goes: rows regrouped, 2x2 blocks swizzled, column pairs adjacent."""
    row = torch.arange(rows, device=device).view(-1, 1).expand(rows, columns)
    column = torch.arange(columns, device=device).expand(rows, columns)
    target = row // 32 * 32 + row % 8 * 4 + row % 32 // 8
    swap = (target % 2 == 0) & (column % 2 == 1)
    back = (target % 2 == 1) & (column % 2 == 0)
    target, column = target + swap.long() - back.long(), column - swap.long() + back.long()
    return column // 2 * rows * 2 + target * 2 + column % 2
