"""Physically smaller weights: kept channels, nonzero values, 2:4 compression. Schemas, fakes, wrappers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastalter.errors import MaskError
from fastalter.ops import backends
from fastalter.ops.checks import FLOATS

SCHEMAS = {
    "compact_channels": "(Tensor[] weights, Tensor[] kept, int[] dims) -> Tensor[]",
    "pack_sparse": "(Tensor dense) -> (Tensor mask, Tensor values)",
    "unpack_sparse": "(Tensor mask, Tensor values, SymInt size) -> Tensor",
    "compress_nm": "(Tensor dense) -> (Tensor values, Tensor metadata)",
}


# ---- fake implementations -------------------------------------------------------------------------------------------


def fake_compact_channels(weights: Sequence[Tensor], kept: Sequence[Tensor], dims: Sequence[int]) -> list[Tensor]:
    compacted = []
    for t, weight in enumerate(weights):
        shape = list(weight.shape)
        for index, dim in zip(kept[2 * t : 2 * t + 2], dims[2 * t : 2 * t + 2], strict=True):
            if dim >= 0:
                shape[dim] = index.shape[0]
        compacted.append(weight.new_empty(shape))
    return compacted


def fake_pack_sparse(dense: Tensor) -> tuple[Tensor, Tensor]:
    present = torch.library.get_ctx().new_dynamic_size()
    return dense.new_empty((dense.shape[0] + 63) // 64 * 8, dtype=torch.uint8), dense.new_empty(present)


def fake_unpack_sparse(mask: Tensor, values: Tensor, size: int) -> Tensor:
    return values.new_empty(size)


def fake_compress_nm(dense: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = dense.shape
    per_word = 8 if dense.dtype == torch.float32 else 16
    return dense.new_empty(rows, columns // 2), dense.new_empty(rows, columns // per_word, dtype=torch.int16)


# ---- typed wrappers -------------------------------------------------------------------------------------------------


def compact_channels(weights: Sequence[Tensor], kept: Sequence[Mapping[int, Tensor]]) -> list[Tensor]:
    """Gather the kept channels of many tensors in one launch.

    Args: weights: tensors of any shape and floating dtype on one device. kept: per weight, dim -> int64 indices that
    stay, for at most two dims. (Linear [O, I] and conv [O, I, kh, kw]: dims 0 and 1; sparse conv KRSC: 0 and -1; RSCK:
    -1 and -2.) Indices may come in any order and repeat.
    Returns: per weight a new contiguous tensor, its elements bitwise the kept ones, as index_select dim by dim.
    Raises: MaskError if a dim or an index lies outside a weight, or a dtype or device does not fit.
    """
    if len(weights) != len(kept):
        raise MaskError(f"compact_channels: {len(weights)} weights but {len(kept)} sets of kept channels")
    if not weights:
        return []
    nothing = torch.empty(0, dtype=torch.int64, device=weights[0].device)
    indices: list[Tensor] = []
    dims: list[int] = []
    for t, (weight, of_weight) in enumerate(zip(weights, kept, strict=True)):
        found = {_dim_of(t, weight, dim): index for dim, index in of_weight.items()}
        if not len(found) == len(of_weight) <= 2:
            raise MaskError(
                f"compact_channels: kept[{t}] names dims {list(of_weight)}: give at most two different ones"
            )
        for dim in sorted(found):
            _check_index(t, weight, dim, found[dim])
            indices.append(found[dim].contiguous())
            dims.append(dim)
        indices += [nothing] * (2 - len(found))
        dims += [-1] * (2 - len(found))
    device = weights[0].device
    if backends.serving("compact_channels", device.type).name != "cpp":  # which looks for itself, at no cost
        _check_range(weights, indices, dims)
    try:
        with torch.no_grad():
            run = backends.implementation("compact_channels", device)
            compacted: list[Tensor] = run([weight.contiguous() for weight in weights], indices, dims)
    except RuntimeError as error:
        raise MaskError(str(error).splitlines()[0]) from error
    return compacted


def _dim_of(t: int, weight: Tensor, dim: int) -> int:
    if not -weight.dim() <= dim < weight.dim():
        raise MaskError(f"compact_channels: kept[{t}] names dim {dim} of a weight of shape {tuple(weight.shape)}")
    return dim % weight.dim()


def _check_index(t: int, weight: Tensor, dim: int, index: Tensor) -> None:
    if index.dtype != torch.int64 or index.dim() != 1 or index.device != weight.device:
        found = f"{index.dim()}-dim {index.dtype} on {index.device}"
        raise MaskError(f"compact_channels: kept[{t}][{dim}] is {found}, but must be 1-dim int64 on {weight.device}")


def _check_range(weights: Sequence[Tensor], indices: Sequence[Tensor], dims: Sequence[int]) -> None:
    """All indices at once: one look at the device, however many tensors there are."""
    limits = [0 if dim < 0 else weights[i // 2].shape[dim] for i, dim in enumerate(dims)]
    lengths = [index.shape[0] for index in indices]
    together = torch.cat(list(indices))
    limit = torch.repeat_interleave(torch.tensor(limits), torch.tensor(lengths)).to(together.device)
    outside = (together < 0) | (together >= limit)
    if bool(outside.any()):
        first = int(outside.nonzero()[0])
        i = next(i for i, end in enumerate(itertools.accumulate(lengths)) if first < end)
        raise MaskError(f"compact_channels: kept[{i // 2}][{dims[i]}] holds an index outside 0..{limits[i] - 1}")


def pack_sparse(dense: Tensor) -> tuple[Tensor, Tensor]:
    """Bitmask and values of a tensor that is mostly zero; loses nothing.

    Args: dense: contiguous 1-D [N], any floating dtype.
    Returns: mask uint8 [8*ceil(N/64)] as `make_mask` packs it; values [number of set bits], the elements in order.
    Every element whose bits are not all zero counts, -0.0 and NaN included.
    Raises: MaskError if dense is not contiguous, 1-D and floating.
    """
    if dense.dtype not in FLOATS or dense.dim() != 1 or not dense.is_contiguous():
        found = f"{dense.dim()}-dim {dense.dtype}"
        raise MaskError(f"pack_sparse: dense is {found}, but must be contiguous, 1-D and floating: pass x.flatten()")
    mask, values = backends.implementation("pack_sparse", dense.device)(dense.detach())
    return mask, values


def unpack_sparse(mask: Tensor, values: Tensor, size: int) -> Tensor:
    """The inverse of `pack_sparse`: dense [size].

    Raises: MaskError if the mask does not belong to this size and number of values.
    """
    if mask.dtype != torch.uint8 or mask.dim() != 1 or mask.numel() != (size + 63) // 64 * 8 or size < 0:
        found = f"{tuple(mask.shape)} {mask.dtype}"
        raise MaskError(f"unpack_sparse: mask is {found}, but must be ({(size + 63) // 64 * 8},) torch.uint8")
    if values.dtype not in FLOATS or values.dim() != 1 or values.device != mask.device:
        raise MaskError(f"unpack_sparse: values is {values.dim()}-dim {values.dtype} on {values.device}")
    try:
        unpack = backends.implementation("unpack_sparse", mask.device)
        dense: Tensor = unpack(mask.contiguous(), values.contiguous(), size)
    except RuntimeError as error:
        raise MaskError(str(error).splitlines()[0]) from error
    return dense


def compress_nm(dense: Tensor) -> tuple[Tensor, Tensor]:
    """2:4 compression (float32: 1:2) as torch's semi-structured tensors of the CUTLASS backend hold it.

    Args: dense [m, k], float32, bfloat16 or float16, m a multiple of 32, k of 32 (float32: 16); normally with two
    nonzeros in every four entries of a row (float32: one in two). Of more, those that torch's table prefers stay.
    Returns: values [m, k/2]; metadata int16 [m, k/16] (float32: [m, k/8]).
    Raises: MaskError if dtype or shape cannot be compressed.
    """
    columns = 16 if dense.dtype == torch.float32 else 32  # metadata columns come in pairs
    if dense.dtype not in (torch.float32, torch.bfloat16, torch.float16) or dense.dim() != 2:
        found = f"{dense.dim()}-dim {dense.dtype}"
        raise MaskError(f"compress_nm: dense is {found}, but must be 2-dim float32, bfloat16 or float16")
    if dense.shape[0] % 32 or dense.shape[1] % columns:
        multiples = f"rows a multiple of 32 and columns of {columns}"
        raise MaskError(f"compress_nm: dense is {tuple(dense.shape)}, but must have {multiples}")
    values, metadata = backends.implementation("compress_nm", dense.device)(dense.detach().contiguous())
    return values, metadata
