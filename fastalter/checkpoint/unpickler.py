"""A pickle machine that builds plain data and tensors and calls nothing that a file names.

It walks the opcodes (`pickletools.genops` parses them), keeps a stack and a memo as the protocol says, and turns a
global into one of three things: a rebuilder out of the table below, an inert `StubClass`, or a refusal (`names.py`).
Building an object of a stub gives a `Stub`; state, items and attributes given to a stub are dropped. Memory stays in
proportion to the file: no opcode allocates more than it brings along, and their number is limited.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from torch import Tensor

from fastalter.checkpoint.arrays import ArrayBox, ArrayType, array_scalar
from fastalter.checkpoint.names import BUILTINS, Stub, StubClass, check_global, shown
from fastalter.checkpoint.tensors import (
    DTYPES,
    STORAGE_TYPES,
    StorageType,
    rebuild_from_type,
    rebuild_parameter,
    rebuild_tensor,
    rebuild_tensor_v2,
    rebuild_tensor_v3,
)
from fastalter.errors import CheckpointError

MAX_OPCODES = 5_000_000
"""A published checkpoint has about 3e4; one with optimiser state and long logs some 1e6."""


@dataclass(frozen=True)
class Rebuild:
    """A function of this package that stands in for the one a pickle names."""

    call: Callable[..., object]


def _ordered_dict(items: object = ()) -> OrderedDict[object, object]:
    return OrderedDict((_key(k), v) for k, v in _items(items))


def _set(items: object = ()) -> set[object]:
    return {_key(item) for item in _items(items)}


def _bytes(text: object = "", coding: object = "latin1") -> bytes:
    """bytes(), bytes([..]), _codecs.encode(text, "latin1"): how protocol 2 spells bytes. A number would allocate."""
    if isinstance(text, str) and coding in ("latin1", "latin-1"):
        return text.encode("latin1")
    return text if isinstance(text, bytes) else bytes(_items(text))


def _complex(real: object = 0.0, imaginary: object = 0.0) -> complex:
    if not isinstance(real, int | float) or not isinstance(imaginary, int | float):
        raise _malformed("a complex number is built of something else than numbers")
    return complex(real, imaginary)


def _size(items: object = ()) -> tuple[object, ...]:
    return tuple(_items(items))


def _reconstruct(kind: object, _base: object = None, _state: object = None) -> object:
    """copyreg._reconstructor: an object of the first argument."""
    return Stub(kind.name if isinstance(kind, StubClass) else "object")


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_REBUILD: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": rebuild_from_type,
    "torch.Size": _size,
    "numpy.dtype": ArrayType,
    "_codecs.encode": _bytes,
    "copyreg._reconstructor": _reconstruct,
    "copy_reg._reconstructor": _reconstruct,
    **{f"{module}.scalar": array_scalar for module in _NUMPY},
    **{f"{module}._reconstruct": ArrayBox for module in _NUMPY},
    **{f"{module}.set": _set for module in BUILTINS},
    **{f"{module}.frozenset": lambda items=(): frozenset(_set(items)) for module in BUILTINS},
    **{f"{module}.bytes": _bytes for module in BUILTINS},
    **{f"{module}.bytearray": lambda *args: bytearray(_bytes(*args)) for module in BUILTINS},
    **{f"{module}.complex": _complex for module in BUILTINS},
}
_LITERAL_OPCODES = """
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE
    SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
"""
_LITERALS = frozenset(_LITERAL_OPCODES.split())
_CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], object]] = {
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}


def _malformed(what: str) -> CheckpointError:
    return CheckpointError(f"not a pickle that a checkpoint holds ({what}): get the file again")


def _items(value: object) -> list[Any]:
    if not isinstance(value, list | tuple | set | dict | bytes | bytearray):
        raise _malformed("a collection is built of something that is not one")
    return list(value.items()) if isinstance(value, dict) else list(value)


def _key(key: object) -> object:
    """A dictionary key or set member; nested tuples could make hashing take for ever, so they are not taken."""
    flat = key if isinstance(key, tuple) else (key,)
    if not all(isinstance(k, str | int | float | bytes | type(None) | Stub | StubClass) for k in flat):
        raise _malformed(f"a dictionary key of type {type(key).__name__}")
    return key


class Unpickler:
    """One run over one pickle. `persistent` serves persistent ids (storages); `stubs` names what stayed inert."""

    def __init__(self, persistent: Callable[[object], object] | None = None) -> None:
        self.persistent = persistent
        self.stubs: dict[str, None] = {}
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def load(self, stream: IO[bytes]) -> object:
        """The object of the pickle at the stream's position, which is left just behind it.

        Raises:
            CheckpointError: malformed, too long, or naming a global that could run code.
        """
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if count > MAX_OPCODES:
                    raise _malformed(f"more than {MAX_OPCODES} opcodes")
                self._step(opcode.name, argument)
            return self._stack.pop()
        except CheckpointError:
            raise
        except Exception as error:  # whatever bytes do to a parser, the caller hears of it in one way
            raise _malformed(shown(f"{type(error).__name__}: {error}")) from error

    def _step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        else:
            handler = getattr(self, f"_op_{name.lower()}", None)
            if handler is None:
                raise _malformed(f"opcode {name}")
            handler(argument)

    # Stack and memo.
    def _op_proto(self, _: object) -> None:
        pass

    _op_frame = _op_stop = _op_proto

    def _op_mark(self, _: object) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _op_pop(self, _: object) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _op_pop_mark(self, _: object) -> None:
        self._pop_mark()

    def _op_dup(self, _: object) -> None:
        self._stack.append(self._stack[-1])

    def _op_put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    _op_binput = _op_long_binput = _op_put

    def _op_memoize(self, _: object) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _op_get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    _op_binget = _op_long_binget = _op_get

    # Collections.
    def _op_tuple(self, _: object) -> None:
        items = tuple(self._pop_mark())
        self._stack.append(items)

    def _last(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        if len(items) < count:
            raise _malformed("the stack is empty")
        self._stack[-count:] = [items]

    def _op_tuple1(self, _: object) -> None:
        self._last(1)

    def _op_tuple2(self, _: object) -> None:
        self._last(2)

    def _op_tuple3(self, _: object) -> None:
        self._last(3)

    def _op_list(self, _: object) -> None:
        items = self._pop_mark()
        self._stack.append(items)

    def _op_dict(self, _: object) -> None:
        items = self._pop_mark()
        self._stack.append({})
        self._set_items(items)

    def _op_frozenset(self, _: object) -> None:
        items = self._pop_mark()
        self._stack.append(frozenset(_set(items)))

    def _op_append(self, _: object) -> None:
        self._extend([self._stack.pop()])

    def _op_appends(self, _: object) -> None:
        self._extend(self._pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Stub):
            raise _malformed(f"items are added to a {type(target).__name__}")

    def _op_additems(self, _: object) -> None:
        items = self._pop_mark()
        target = self._stack[-1]
        if isinstance(target, set):
            target.update(_set(items))
        elif not isinstance(target, Stub):
            raise _malformed(f"members are added to a {type(target).__name__}")

    def _op_setitem(self, _: object) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def _op_setitems(self, _: object) -> None:
        self._set_items(self._pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Stub):
            return
        if not isinstance(target, dict):
            raise _malformed(f"entries are added to a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    # Globals and objects.
    def _op_global(self, argument: str) -> None:
        self._stack.append(self._find(*argument.split(" ", 1)))

    def _op_stack_global(self, _: object) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(self._find(module, name))

    def _find(self, module: object, name: object) -> object:
        if not isinstance(module, str) or not isinstance(name, str):
            raise _malformed("a global without a name")
        check_global(module, name)
        full = f"{module}.{name}"
        if full in _REBUILD:
            return Rebuild(_REBUILD[full])
        if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGE_TYPES:
            return StorageType(STORAGE_TYPES[name])
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        return StubClass(full)

    def _build_object(self, kind: object, arguments: object) -> None:
        if isinstance(kind, StubClass):
            self.stubs[kind.name] = None
            self._stack.append(Stub(kind.name))
        elif isinstance(kind, Rebuild) and isinstance(arguments, tuple):
            self._stack.append(kind.call(*arguments))
        else:
            raise _malformed(f"an object is built by a {type(kind).__name__}")

    def _op_reduce(self, _: object) -> None:
        arguments, kind = self._stack.pop(), self._stack.pop()
        self._build_object(kind, arguments)

    _op_newobj = _op_reduce

    def _op_newobj_ex(self, _: object) -> None:
        self._stack.pop()
        self._op_reduce(None)

    def _op_obj(self, _: object) -> None:
        kind, *arguments = self._pop_mark()
        self._build_object(kind, tuple(arguments))

    def _op_inst(self, argument: str) -> None:
        arguments = tuple(self._pop_mark())
        self._build_object(self._find(*argument.split(" ", 1)), arguments)

    def _op_build(self, _: object) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, ArrayBox | ArrayType):
            target.set_state(state)
        elif isinstance(target, OrderedDict):
            metadata = state.get("_metadata") if isinstance(state, dict) else None
            if isinstance(metadata, dict):  # what torch's state_dict() hangs onto its result
                target._metadata = metadata  # type: ignore[attr-defined]
        elif not isinstance(target, Stub | Tensor):
            raise _malformed(f"state is given to a {type(target).__name__}")

    def _op_binpersid(self, _: object) -> None:
        self._persist(self._stack.pop())

    def _op_persid(self, identity: str) -> None:
        self._persist(identity)

    def _persist(self, identity: object) -> None:
        if self.persistent is None:
            raise _malformed("a storage where there can be none")
        self._stack.append(self.persistent(identity))
