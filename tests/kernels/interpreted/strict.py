"""A strict interpreter: what Triton's own lets pass, this one reports with kernel, program, argument and offset.

    out of bounds    a load, store or atomic outside the extent of the tensor that the pointer was made from
    races            two programs store to one address, or one loads what another stores (atomics are exempt)
    no `other`       the masked lanes of a load without `other` hold NaN, or a poison integer
    bfloat16         arithmetic, comparison, reduction or dot on bf16 operands: the interpreter would work on their bits
    grid order       programs run in an order drawn from a seed; `any_order` compares the results of several orders
    not written      torch.empty and its like give NaN or the poison integer

Casts from float32 to bfloat16 round to nearest even here, as on a GPU (Triton's interpreter truncates).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError
from triton.runtime.jit import TensorWrapper

POISON = 0xA5  # every byte of a poisoned integer
NOBODY, SEVERAL = -1, -2
# What keeps a pointer's origin: the result points into the tensor of the first operand.
POINTER_OPS = ("addptr", "splat", "unsplat", "broadcast", "expand_dims", "reshape", "trans", "bitcast")


class StrictError(AssertionError):
    """A kernel did what is undefined, or garbage, on a GPU or in the interpreter."""


@dataclass
class Extent:
    """The bytes [low, high) of a tensor argument."""

    name: str
    low: int
    high: int
    base: int  # where the storage begins, and its size
    nbytes: int


@dataclass
class Launch:
    """One kernel launch under way."""

    kernel: str
    program: tuple[int, int, int] = (0, 0, 0)
    grid: tuple[int, int, int] = (1, 1, 1)
    order: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    extents: dict[int, Extent] = field(default_factory=dict)  # by the id of the host tensor
    # By the base of the storage: for each byte the program that wrote it, and the one that read it.
    touched: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    patched: dict[tuple[int, ...], Any] = field(default_factory=dict)  # what _patch_lang did, by the modules it patched

    def number(self) -> int:
        return int(np.ravel_multi_index(self.program, self.grid))

    def fail(self, what: str) -> None:
        raise StrictError(f"{self.kernel}, program {self.program} of {self.grid}: {what}")

    def register(self, name: str, value: Any) -> None:
        """Records a tensor argument, or each tensor of a tuple of them."""
        if isinstance(value, tuple):
            for i, item in enumerate(value):
                self.register(f"{name}[{i}]", item)
        elif hasattr(value, "data_ptr"):
            tensor = value.base if isinstance(value, TensorWrapper) else value
            low, storage = tensor.data_ptr(), tensor.untyped_storage()
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            span = (1 + last) * tensor.element_size() if tensor.numel() else 0
            self.extents[id(value)] = Extent(name, low, low + span, storage.data_ptr(), storage.nbytes())

    def extent_of(self, pointers: Any, addresses: np.ndarray, size: int, what: str) -> Extent:
        """The tensor that all addresses lie in: the pointer's own, or any where its origin was lost."""
        origin = pointers.attr.get("origin")
        candidates = [origin] if origin is not None else list(self.extents.values())
        low, high = int(addresses.min()), int(addresses.max()) + size
        for extent in candidates:
            if extent.low <= low and high <= extent.high:
                return extent
        near = origin or min(candidates, key=lambda e: abs(low - e.low), default=None)
        if near is None:
            self.fail(f"out of bounds {what}: no argument is a tensor")
        outside = low if low < near.low else int(addresses[addresses + np.uint64(size) > near.high].min(initial=high))
        self.fail(
            f"out of bounds {what}: {near.name} at element {(outside - near.low) // size} "
            f"of {(near.high - near.low) // size}"
        )
        raise AssertionError

    def touch(self, pointers: Any, mask: np.ndarray, what: str) -> None:
        """Bounds and races of one access; what: "load", "store" or "atomic"."""
        addresses = np.broadcast_to(pointers.data, mask.shape)[mask].astype(np.uint64).ravel()
        if addresses.size == 0:
            return
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        extent = self.extent_of(pointers, addresses, size, what)
        if what == "atomic" or self.grid == (1, 1, 1):
            return
        if extent.base not in self.touched:
            self.touched[extent.base] = tuple(np.full(extent.nbytes, NOBODY, np.int32) for _ in range(2))
        all_writers, all_readers = self.touched[extent.base]
        me = self.number()
        begins = (addresses - np.uint64(extent.base)).astype(np.int64)
        at = (begins[:, None] + np.arange(size)).ravel()
        writers, readers = all_writers[at], all_readers[at]
        self.refuse(extent, at, writers, me, f"{what}s", "stores", size)
        if what == "store":
            self.refuse(extent, at, readers, me, "stores", "loads", size)
            all_writers[at] = me
        else:
            all_readers[at] = np.where((readers == NOBODY) | (readers == me), me, SEVERAL)

    def refuse(
        self, extent: Extent, at: np.ndarray, others: np.ndarray, me: int, mine: str, theirs: str, size: int
    ) -> None:
        found = np.flatnonzero((others != NOBODY) & (others != me))
        if found.size:
            element = (int(at[found[0]]) + extent.base - extent.low) // size
            other = others[found[0]]
            who = "other programs" if other == SEVERAL else f"program {self.unravel(other)}"
            self.fail(f"race: {mine} {extent.name} at element {element}, which {who} {theirs}")

    def unravel(self, number: int) -> tuple[int, ...]:
        return tuple(int(i) for i in np.unravel_index(number, self.grid))


def poison(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Values for lanes that hold none: NaN, the poison integer, or true."""
    numpy_dtype = interpreter._get_np_dtype(dtype)
    if dtype == tl.bfloat16:
        return np.full(shape, 0x7FC0, numpy_dtype)
    if numpy_dtype.kind == "f":
        return np.full(shape, np.nan, numpy_dtype)
    if numpy_dtype.kind == "b":
        return np.ones(shape, numpy_dtype)
    return np.full((*shape, numpy_dtype.itemsize), POISON, np.uint8).view(numpy_dtype)[..., 0]


def poisoned(tensor: Tensor) -> Tensor:
    """Fills a new tensor with NaN, or with the poison integer."""
    with torch.no_grad():
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            tensor.fill_(float("nan"))
        elif tensor.device.type == "cpu" and tensor.numel() and tensor.dtype != torch.bool:
            tensor.fill_(
                int.from_bytes(bytes([POISON]) * tensor.element_size(), "little", signed=tensor.dtype.is_signed)
            )
    return tensor


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16, ties to even."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


class Strict:
    """Installs itself over Triton's interpreter; `seed` draws the grid order of the launches that follow."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.launches: list[Launch] = []  # a stack: a pre-run hook may launch a kernel
        self.history: list[tuple[str, tuple[int, int, int]]] = []  # kernel and grid of every launch

    @property
    def launch(self) -> Launch:
        return self.launches[-1]

    def any_order(self, run: Callable[[], Any], seeds: range = range(4)) -> Any:
        """Runs `run` under several grid orders; its tensors must agree bit for bit. Returns the last result."""
        first: list[bytes] | None = None
        for self.seed in seeds:
            result = run()
            found = [_bytes(tensor) for tensor in _tensors(result)]
            if first is not None and found != first:
                kernels = ", ".join(dict.fromkeys(kernel for kernel, _ in self.history))
                raise StrictError(f"the result depends on the grid order (kernels so far: {kernels})")
            first = found
        return result

    @contextlib.contextmanager
    def installed(self) -> Iterator[Strict]:
        """While open, every interpreted launch is checked and every new empty tensor poisoned."""
        with contextlib.ExitStack() as stack:
            for owner, name, make in self._patches():
                original = getattr(owner, name)
                own = name in vars(owner)
                setattr(owner, name, make(original))
                stack.callback(setattr, owner, name, original) if own else stack.callback(delattr, owner, name)
            yield self

    def _patches(self) -> Iterator[tuple[Any, str, Callable[[Any], Any]]]:
        builder, executor = interpreter.interpreter_builder, interpreter.GridExecutor
        yield executor, "__call__", self._call
        yield executor, "_init_args_hst", self._init_args
        yield interpreter, "_implicit_cvt", self._convert
        yield interpreter, "_patch_lang", self._patch_lang
        yield builder, "set_grid_dim", self._set_grid_dim
        yield builder, "set_grid_idx", self._set_grid_idx
        yield builder, "create_masked_load", self._load
        yield builder, "create_masked_store", self._store
        yield builder, "create_atomic_rmw", self._atomic_rmw
        yield builder, "create_atomic_cas", self._atomic_cas
        yield builder, "cast_impl", self._cast
        for op in POINTER_OPS:
            yield builder, f"create_{op}", self._keep_origin
        for op in ("binary_op", "unary_op", "create_fma", "create_dot"):
            yield builder, op, self._no_bfloat16
        yield interpreter.ReduceScanOpInterface, "apply", self._no_bfloat16_reduction
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (Tensor, "new_empty")):
            yield owner, name, self._poison_new

    # ---- launches ----

    def _call(self, original: Any) -> Any:
        def call(executor: Any, *args: Any, **kwargs: Any) -> Any:
            self.launches.append(Launch(executor.fn.__name__))
            try:
                with np.errstate(all="ignore"):
                    return original(executor, *args, **kwargs)
            except InterpreterError as error:
                cause: BaseException | None = error
                while cause is not None and not isinstance(cause, StrictError):
                    cause = cause.__cause__
                if cause is not None:
                    raise cause from None
                raise
            finally:
                self.launches.pop()

        return call

    def _init_args(self, original: Any) -> Any:
        def init(executor: Any, args: Any, kwargs: Any) -> Any:
            args, kwargs = original(executor, args, kwargs)
            names = inspect.signature(executor.fn).parameters
            for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
                self.launch.register(name, value)
            return args, kwargs

        return init

    def _convert(self, original: Any) -> Any:
        def convert(arg: Any) -> Any:
            result = original(arg)
            if self.launches and id(arg) in self.launch.extents:
                result.handle.attr["origin"] = self.launch.extents[id(arg)]
            return result

        return convert

    def _patch_lang(self, original: Any) -> Any:
        """Triton patches its language anew in every call of a device function; once a launch does, and is faster."""

        def patch_lang(fn: Any) -> Any:
            modules = tuple(id(value) for value in fn.__globals__.values() if value is tl or value is tl.core)
            if modules not in self.launch.patched:
                self.launch.patched[modules] = original(fn)
            return self.launch.patched[modules]

        return patch_lang

    def _set_grid_dim(self, original: Any) -> Any:
        def set_grid_dim(x: int, y: int, z: int) -> None:
            original(x, y, z)
            self.launch.grid = (x, y, z)
            self.launch.order = np.random.default_rng(self.seed).permutation(x * y * z)
            self.history.append((self.launch.kernel, self.launch.grid))

        return set_grid_dim

    def _set_grid_idx(self, original: Any) -> Any:
        def set_grid_idx(x: int, y: int, z: int) -> None:
            launch = self.launch
            turn = np.ravel_multi_index((x, y, z), launch.grid)
            launch.program = launch.unravel(launch.order[turn])
            original(*launch.program)

        return set_grid_idx

    # ---- memory ----

    def _load(self, original: Any) -> Any:
        def load(ptrs: Any, mask: Any, other: Any, *rest: Any, **named: Any) -> Any:
            self.launch.touch(ptrs, mask.data, "load")
            if other is None:
                dtype = ptrs.get_element_ty()
                other = interpreter.TensorHandle(poison(ptrs.data.shape, dtype), dtype)
            return original(ptrs, mask, other, *rest, **named)

        return load

    def _store(self, original: Any) -> Any:
        def store(ptrs: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
            self.launch.touch(ptrs, mask.data, "store")
            return original(ptrs, value, mask, *rest, **named)

        return store

    def _atomic_rmw(self, original: Any) -> Any:
        def atomic_rmw(op: Any, ptr: Any, val: Any, mask: Any, *rest: Any) -> Any:
            self.launch.touch(ptr, mask.data, "atomic")
            return original(op, ptr, val, mask, *rest)

        return atomic_rmw

    def _atomic_cas(self, original: Any) -> Any:
        def atomic_cas(ptr: Any, *rest: Any) -> Any:
            self.launch.touch(ptr, np.ones_like(ptr.data, dtype=bool), "atomic")
            return original(ptr, *rest)

        return atomic_cas

    def _keep_origin(self, original: Any) -> Any:
        def keep_origin(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            for arg in (*args, *kwargs.values()):
                if isinstance(arg, interpreter.TensorHandle) and "origin" in arg.attr:
                    result.attr.setdefault("origin", arg.attr["origin"])
            return result

        return keep_origin

    # ---- bfloat16 ----

    def _cast(self, original: Any) -> Any:
        def cast(src: Any, dst_type: Any) -> Any:
            if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
                return interpreter.TensorHandle(round_to_bfloat16(src.data), dst_type.scalar)
            return original(src, dst_type)

        return cast

    def _no_bfloat16(self, original: Any) -> Any:
        def no_bfloat16(*args: Any, **kwargs: Any) -> Any:
            for arg in (*args, *kwargs.values()):
                if isinstance(arg, interpreter.TensorHandle) and arg.dtype.scalar == tl.bfloat16:
                    self.launch.fail("bfloat16 arithmetic: the interpreter would work on the bits; cast up first")
            return original(*args, **kwargs)

        return no_bfloat16

    def _no_bfloat16_reduction(self, original: Any) -> Any:
        def apply(interface: Any, values: Any) -> Any:
            for value in values if isinstance(values, tuple) else (values,):
                if value.dtype.scalar == tl.bfloat16:
                    self.launch.fail("bfloat16 arithmetic in a reduction or scan: cast up first")
            return original(interface, values)

        return apply

    def _poison_new(self, original: Any) -> Any:
        def new(*args: Any, **kwargs: Any) -> Tensor:
            return poisoned(original(*args, **kwargs))

        return new


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, list | tuple):
        for item in result:
            yield from _tensors(item)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
