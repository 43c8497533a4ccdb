"""Tensors over the bytes of a file: every size, stride and offset is checked before a view is made of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from mmap import mmap

import torch
from torch import Tensor

from fastalter.checkpoint.names import Stub, StubClass
from fastalter.errors import CheckpointError

MAX_DIMENSIONS = 32
STORAGE_TYPES: dict[str, torch.dtype | None] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": None,
}
DTYPES: dict[str, torch.dtype] = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


@dataclass(frozen=True)
class StorageType:
    """A storage class of torch; `dtype` is None for the untyped one, which counts bytes."""

    dtype: torch.dtype | None

    @property
    def element(self) -> torch.dtype:
        return torch.uint8 if self.dtype is None else self.dtype


@dataclass(frozen=True)
class Storage:
    """A flat run of elements [n] of one dtype."""

    data: Tensor


def map_storage(buffer: mmap, offset: int, count: int, dtype: torch.dtype) -> Tensor:
    """Elements [count] at a byte offset of the mapped file: a view, or a copy where they are not aligned."""
    nbytes = count * dtype.itemsize
    if offset < 0 or count < 0 or offset + nbytes > len(buffer):
        raise CheckpointError(f"a storage of {nbytes} bytes at {offset} reaches beyond the file: get the file again")
    if count == 0:
        return torch.empty(0, dtype=dtype)
    if offset % dtype.itemsize:
        raw = torch.frombuffer(buffer, dtype=torch.uint8, count=nbytes, offset=offset)
        return raw.clone().view(dtype)
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=offset)


def rebuild_tensor(
    storage: object, offset: object, size: object, stride: object, dtype: torch.dtype | None = None
) -> Tensor:
    """A strided view of a storage, as torch._utils._rebuild_tensor makes it, with its bounds checked first."""
    if not isinstance(storage, Storage):
        raise CheckpointError("the pickle builds a tensor on something that is not a storage: get the file again")
    data = storage.data if dtype is None or dtype == storage.data.dtype else _reinterpret(storage.data, dtype)
    sizes, strides = _naturals(size), _naturals(stride)
    (start,) = _naturals((offset,))
    if len(sizes) != len(strides):
        raise CheckpointError("the pickle gives a tensor another number of strides than of sizes: get the file again")
    count = math.prod(sizes)
    last = start + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) if count else 0
    # An expanded view (stride 0) of a small storage could ask for any amount of memory when it is copied.
    if last >= data.numel() > 0 or count > data.numel():
        raise CheckpointError(
            f"a tensor of shape {list(sizes)} does not fit into its storage of {data.numel()} elements"
        )
    return torch.as_strided(data, sizes, strides, start if count else 0)


def _reinterpret(data: Tensor, dtype: torch.dtype) -> Tensor:
    whole = data.numel() * data.element_size() // dtype.itemsize * dtype.itemsize
    raw = data.view(torch.uint8)[:whole]
    if raw.device.type != "meta" and raw.data_ptr() % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype)


def _naturals(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or len(values) > MAX_DIMENSIONS:
        raise CheckpointError("the pickle gives a tensor a shape that is not a short tuple: get the file again")
    if not all(type(v) is int and 0 <= v < 2**62 for v in values):
        raise CheckpointError("the pickle gives a tensor a negative or absurd size: get the file again")
    return tuple(values)


# The signatures below are those of torch._utils; what does not bear on the values is ignored.
def rebuild_tensor_v2(
    storage: object, offset: object, size: object, stride: object, _grad: object, _hooks: object, _meta: object = None
) -> Tensor:
    return rebuild_tensor(storage, offset, size, stride)


def rebuild_tensor_v3(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    _grad: object,
    _hooks: object,
    dtype: object,
    _meta: object = None,
) -> Tensor:
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError("the pickle gives a tensor a type that is not a torch dtype: get the file again")
    return rebuild_tensor(storage, offset, size, stride, dtype)


def rebuild_parameter(data: object, _grad: object, _hooks: object, _state: object = None) -> Tensor | Stub:
    return data if isinstance(data, Tensor) else Stub("torch.nn.parameter.Parameter")


def rebuild_from_type(function: object, kind: object, arguments: object, _state: object) -> object:
    """torch._tensor._rebuild_from_type_v2: a tensor with Python attributes; they are left out."""
    known = {"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter"}
    rebuild = getattr(function, "call", None)
    if not isinstance(kind, StubClass) or kind.name not in known or rebuild is None or not isinstance(arguments, tuple):
        return Stub(kind.name if isinstance(kind, StubClass) else "torch.Tensor")
    return rebuild(*arguments)
