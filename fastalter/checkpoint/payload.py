"""What a checkpoint carries beside its weights: kept where it is plain data, left out by name where it is not."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastalter.checkpoint.arrays import ArrayBox
from fastalter.checkpoint.names import Stub, StubClass, shown

MAX_DEPTH = 40
_SCALARS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, np.generic)


class _NotPlain(Exception):
    """Carries why something cannot be kept."""


class PlainCopier:
    """Copies plain data out of a file's object, so that nothing keeps the file open.

    `left_out` maps the place of each dropped dictionary entry ("meta.hook") to what it held. A list or tuple with
    something in it that cannot be kept is dropped whole, because its positions mean something.
    """

    def __init__(self, budget: int) -> None:
        self.left_out: dict[str, str] = {}
        self._budget = budget  # bytes of tensors; a file whose tensors share storages could ask for far more
        self._memo: dict[int, Any] = {}

    def mapping(self, source: Mapping[Any, object], path: str = "", depth: int = 0) -> dict[Any, Any]:
        """A dict (or OrderedDict) of the entries that are plain; notes the others in `left_out`."""
        copied: dict[Any, Any] = OrderedDict() if isinstance(source, OrderedDict) else {}
        self._memo[id(source)] = copied
        for key, value in source.items():
            place = f"{path}.{shown(key, 40)}" if path else shown(key, 40)
            try:
                copied[self._copy(key, place, depth + 1)] = self._copy(value, place, depth + 1)
            except _NotPlain as reason:
                self.left_out[place] = str(reason)
        return copied

    def _copy(self, value: Any, path: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise _NotPlain("nested too deep")
        if isinstance(value, _SCALARS):
            return value
        if id(value) in self._memo:
            return self._memo[id(value)]
        return self._memo.setdefault(id(value), self._fresh(value, path, depth))

    def _fresh(self, value: Any, path: str, depth: int) -> Any:
        match value:
            case Tensor():
                return self._tensor(value)
            case ArrayBox(value=np.ndarray() as array):
                return array.copy()
            case dict():
                return self.mapping(value, path, depth)
            case bytearray():
                return bytearray(value)
            case list() | tuple() | set() | frozenset():
                self._memo[id(value)] = None  # a list inside itself
                try:
                    return type(value)([self._whole(item, path, depth + 1) for item in value])
                finally:
                    del self._memo[id(value)]
            case Stub() | StubClass():
                raise _NotPlain(shown(value.name))
        raise _NotPlain(type(value).__name__)

    def _whole(self, item: Any, path: str, depth: int) -> Any:
        before = len(self.left_out)
        copied = self._copy(item, f"{path}[]", depth)
        inside = list(self.left_out)[before:]
        if inside:
            raise _NotPlain(next(iter([self.left_out.pop(place) for place in inside])))
        return copied

    def _tensor(self, value: Tensor) -> Tensor:
        self._budget -= value.numel() * value.element_size()
        if self._budget < 0:
            raise _NotPlain("tensors larger than the file")
        return value.clone()


def describe_left_out(left_out: Mapping[str, str], limit: int = 4) -> list[str]:
    """The note about dropped entries, or none."""
    if not left_out:
        return []
    first = ", ".join(f"{place} ({what})" for place, what in list(left_out.items())[:limit])
    more = f" and {len(left_out) - limit} more" if len(left_out) > limit else ""
    return [f"not plain data, so not loaded and left out when saving: {first}{more}"]
