"""NumPy scalars and arrays out of a pickle, rebuilt from their bytes and never through NumPy's own pickle hooks."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from fastalter.checkpoint.names import Stub
from fastalter.errors import CheckpointError

_CODE = re.compile(r"[biufc?SU]\d{0,6}")


class ArrayType:
    """A numpy.dtype in the making; BUILD brings its byte order. Anything but plain numbers and text stays unknown."""

    def __init__(self, code: object, _align: object = None, _copy: object = None) -> None:
        plain = str(code) if isinstance(code, str) and _CODE.fullmatch(code) else None
        self.dtype: np.dtype[Any] | None = np.dtype(plain) if plain else None

    def set_state(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if self.dtype is not None and order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


class ArrayBox:
    """A numpy.ndarray in the making; BUILD brings shape, type and bytes."""

    def __init__(self, *_: object) -> None:
        self.value: np.ndarray[Any, Any] | None = None

    def set_state(self, state: object) -> None:
        match state:
            case (int(), tuple() as shape, ArrayType(dtype=np.dtype() as dtype), int() as fortran, bytes() as raw):
                if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(raw):
                    raise CheckpointError(
                        f"a NumPy array holds {len(raw)} bytes, which do not fit its shape: get the file again"
                    )
                flat = np.frombuffer(raw, dtype) if raw else np.empty(0, dtype)
                self.value = flat.reshape(shape, order="F" if fortran else "C")


def array_scalar(kind: object, raw: object = None) -> object:
    """numpy.core.multiarray.scalar(dtype, bytes); of another kind (objects, records) it stays a stub."""
    if not isinstance(kind, ArrayType) or kind.dtype is None or not isinstance(raw, bytes):
        return Stub("numpy scalar")
    if len(raw) != kind.dtype.itemsize or not raw:
        raise CheckpointError(
            f"a NumPy scalar holds {len(raw)} bytes, its type {kind.dtype.itemsize}: get the file again"
        )
    return np.frombuffer(raw, kind.dtype)[0]
