"""The CUDA kernels where no compiler is installed: CuPy has NVRTC compile the same headers, on first use.

Launches as csrc/cuda.cu and csrc/cuda_compaction.cu do, on torch's tensors and torch's current stream. Arguments are
those of the schemas; the wrappers of fastalter/ops have checked them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HEADERS = ("apply_mask", "compact_channels", "compress_nm", "pack_sparse")
SOURCE = "".join(f'#include "fastalter/{header}.cuh"\n' for header in HEADERS)
BITS = {2: "uint16_t", 4: "uint32_t", 8: "uint64_t"}  # element size -> the integer that the kernels move
KERNELS = {
    "apply_mask": [f"fastalter::apply_mask_kernel<{bits}>" for bits in BITS.values()]
    + [f"fastalter::apply_mask_strided_kernel<{bits}>" for bits in BITS.values()],
    "compact_channels": ["fastalter::compact_channels_kernel<>"],
    "compress_nm": ["fastalter::compress_nm_kernel<uint16_t>", "fastalter::compress_nm_kernel<uint32_t>"],
    "pack_sparse": [f"fastalter::pack_sparse_kernel<{bits}>" for bits in BITS.values()],
    "unpack_sparse": [f"fastalter::unpack_sparse_kernel<{bits}>" for bits in BITS.values()],
}

# As in the headers, of the same names there.
THREADS = 256
HALF_OF_SM = 4
MAX_DIMS = 8
TILE_BYTES = THREADS * 4 * 16  # of compact_channels and, in elements, of pack_sparse


def include_folder() -> Path:
    """Where the headers are: inside the installed package, or in the checkout of an editable install."""
    installed = Path(__file__).parent / "include"
    return installed if installed.exists() else Path(__file__).parents[2] / "csrc" / "include"


def options() -> tuple[str, ...]:
    return ("-std=c++17", f"-I{include_folder()}")


@functools.cache
def _module(op: str) -> Any:
    cupy: Any = importlib.import_module("cupy")
    return cupy.RawModule(code=SOURCE, options=options(), name_expressions=KERNELS[op], backend="nvrtc")


@contextlib.contextmanager
def _current(device: torch.device) -> Iterator[None]:
    """CuPy on torch's device and stream."""
    cupy: Any = importlib.import_module("cupy")
    stream = cupy.cuda.ExternalStream(torch.cuda.current_stream(device).cuda_stream, device.index)
    with cupy.cuda.Device(device.index), stream:
        yield


def _launch(kernel: str, device: torch.device, blocks: int, blocks_per_sm: int | None, *arguments: Any) -> None:
    """At most so many blocks per SM (None: what fills it). Arguments: integers, addresses, one-element numpy arrays."""
    if blocks == 0:
        return
    kernel = f"fastalter::{kernel}"
    op = next(op for op, kernels in KERNELS.items() if kernel in kernels)
    gpu = torch.cuda.get_device_properties(device)
    most = gpu.multi_processor_count * (blocks_per_sm or gpu.max_threads_per_multi_processor // THREADS)
    with _current(device):
        _module(op).get_function(kernel)((min(blocks, most),), (THREADS,), arguments)


def _ceil_div(n: int, by: int) -> int:
    return -(-n // by)


def _aligned(tensor: Tensor) -> Tensor:
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


# ---- apply_mask -----------------------------------------------------------------------------------------------------


def launch_apply_mask(theta: Sequence[Tensor], mask: Tensor, offsets: Sequence[int]) -> None:
    for weight, bit in zip(theta, offsets, strict=True):
        bits, size = BITS[weight.element_size()], weight.numel()
        where = (mask.data_ptr(), bit, size)
        if weight.is_contiguous():
            blocks = _ceil_div(_ceil_div(size * weight.element_size(), 16), THREADS)
            kernel = f"apply_mask_kernel<{bits}>"
            _launch(kernel, mask.device, blocks, None, weight.data_ptr(), *where)
        else:
            blocks = _ceil_div(size, THREADS)
            kernel = f"apply_mask_strided_kernel<{bits}>"
            _launch(kernel, mask.device, blocks, None, weight.data_ptr(), geometry(weight), *where)


def geometry(tensor: Tensor) -> np.ndarray[Any, Any]:
    """`struct Geometry`, which CuPy passes by value as an array of one element."""
    if tensor.dim() > MAX_DIMS:
        raise RuntimeError("apply_mask: a strided tensor of more than 8 dimensions")
    rest = [0] * (MAX_DIMS - tensor.dim())
    words = [tensor.dim(), *tensor.shape, *rest, *tensor.stride(), *rest]
    return np.array([(words,)], dtype=[("words", np.int64, (len(words),))])


# ---- compact_channels -----------------------------------------------------------------------------------------------


def divisor(by: int) -> tuple[int, int, int]:
    """`struct Divisor`."""
    if by <= 1:
        return by, 0, 0
    shift = (by - 1).bit_length() - 1
    return by, (1 << 64 + shift) // by + 1, shift


def task(weight: Tensor, target: Tensor, gathers: Sequence[tuple[int, Tensor]]) -> list[int]:
    """`struct CompactTask`: the weight as [A, X, B, Y, C], in the widest units that divide C and the address."""
    shape, dims = list(weight.shape), [dim for dim, _ in gathers]
    between = int(np.prod(shape[dims[0] + 1 : dims[1]], dtype=np.int64)) if len(dims) == 2 else 1
    behind = int(np.prod(shape[dims[-1] + 1 :] if dims else shape, dtype=np.int64)) * weight.element_size()
    width = next(w for w in (16, 8, 4, 2, 1) if behind % w == 0 and weight.data_ptr() % w == 0)
    absent = [(0, 1, 1)] * (2 - len(gathers))  # address of the indices, size in the source, size in the target
    (at_x, x, to_x), (at_y, y, to_y) = [(k.data_ptr(), shape[dim], k.numel()) for dim, k in gathers] + absent
    divisors = [*divisor(to_x), *divisor(between), *divisor(to_y), *divisor(behind // width)]
    units = target.numel() * target.element_size() // width
    return [weight.data_ptr(), target.data_ptr(), at_x, at_y, x, y, *divisors, width, units]


def launch_compact_channels(weights: Sequence[Tensor], kept: Sequence[Tensor], dims: Sequence[int]) -> list[Tensor]:
    targets, tasks, first_tiles, tiles = [], [], [], 0
    for t, weight in enumerate(weights):
        both = zip(dims[2 * t : 2 * t + 2], kept[2 * t : 2 * t + 2], strict=True)
        gathers = sorted(((dim, index) for dim, index in both if dim >= 0), key=lambda gather: gather[0])
        shape = list(weight.shape)
        for dim, index in gathers:
            shape[dim] = index.numel()
        targets.append(weight.new_empty(shape))
        if targets[t].numel():
            tasks.append(task(weight, targets[t], gathers))
            first_tiles.append(tiles)
            tiles += _ceil_div(targets[t].numel() * weight.element_size(), TILE_BYTES)
    if tiles:
        words = np.array([word for row in tasks for word in row] + first_tiles, dtype=np.uint64)
        table = torch.from_numpy(words.view(np.int64)).to(weights[0].device)
        at = (table.data_ptr(), table.data_ptr() + 8 * (table.numel() - len(tasks)))
        arguments = (*at, len(tasks), tiles)
        _launch("compact_channels_kernel<>", table.device, tiles, HALF_OF_SM, *arguments)
    return targets


# ---- pack_sparse, unpack_sparse -------------------------------------------------------------------------------------


class _LookBack:
    """The zeroed words that the blocks coordinate through: tickets, then a status per tile."""

    def __init__(self, elements: Tensor, size: int) -> None:
        self.tiles = _ceil_div(size * elements.element_size(), TILE_BYTES)
        self.words = torch.zeros(1 + self.tiles, dtype=torch.int64, device=elements.device)
        self.arguments = (self.words.data_ptr(), self.words.data_ptr() + 8, self.tiles)

    def total(self) -> int:
        return int(self.words[-1]) >> 2 if self.tiles else 0


def launch_pack_sparse(dense: Tensor) -> tuple[Tensor, Tensor]:
    dense, size = _aligned(dense), dense.numel()
    mask = torch.empty(_ceil_div(size, 64) * 8, dtype=torch.uint8, device=dense.device)
    room, look_back = torch.empty_like(dense), _LookBack(dense, size)
    arguments = (dense.data_ptr(), size, mask.data_ptr(), room.data_ptr(), *look_back.arguments)
    kernel = f"pack_sparse_kernel<{BITS[dense.element_size()]}>"
    _launch(kernel, dense.device, look_back.tiles, HALF_OF_SM, *arguments)
    return mask, room[: look_back.total()].clone()


def launch_unpack_sparse(mask: Tensor, values: Tensor, size: int) -> Tensor:
    dense, look_back = values.new_empty(size), _LookBack(values, size)
    arguments = (mask.data_ptr(), values.data_ptr(), values.numel(), dense.data_ptr(), size, *look_back.arguments)
    kernel = f"unpack_sparse_kernel<{BITS[values.element_size()]}>"
    _launch(kernel, mask.device, look_back.tiles, HALF_OF_SM, *arguments)
    bits_set, count = look_back.total(), values.numel()
    if bits_set != count:
        raise RuntimeError(f"unpack_sparse: the mask has {bits_set} bits set, but there are {count} values")
    return dense


# ---- compress_nm ----------------------------------------------------------------------------------------------------


def launch_compress_nm(dense: Tensor) -> tuple[Tensor, Tensor]:
    dense, (rows, columns) = _aligned(dense), dense.shape
    values = dense.new_empty(rows, columns // 2)
    metadata = torch.empty(rows, columns * dense.element_size() // 32, dtype=torch.int16, device=dense.device)
    blocks = _ceil_div(dense.numel() * dense.element_size(), 256 * THREADS)  # a thread takes 256 bytes
    arguments = (dense.data_ptr(), values.data_ptr(), metadata.data_ptr(), rows, columns)
    kernel = f"compress_nm_kernel<{BITS[dense.element_size()]}>"
    _launch(kernel, dense.device, blocks, HALF_OF_SM, *arguments)
    return values, metadata
