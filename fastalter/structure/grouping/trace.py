"""Trace a forward pass with channel labels: tensors that carry them, and what the layers say of them.

The network runs once, as it is. Tensors that come out of a layer with channels are `Labelled`; every operation on them
reaches a rule (`rules/`) that says what became of the labels. What no rule knows keeps its channels together for good:
they are reported, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastalter.fusion.tree import map_tensors
from fastalter.structure.grouping.conditions import Condition
from fastalter.structure.grouping.labels import NOTHING, Classes, strip


class Labelled(torch.Tensor):
    """An activation and the channel of each of its elements.

    lit  whether elements of a channel that is removed may be something else than zero here, in the masked network
    """

    value: Tensor
    labels: Tensor
    owner: Trace
    lit: bool

    @staticmethod
    def __new__(cls, value: Tensor, labels: Tensor, owner: Trace, lit: bool = False) -> Labelled:
        assert labels.shape == value.shape, (labels.shape, value.shape)
        made: Labelled = torch.Tensor._make_wrapper_subclass(
            cls,
            value.size(),
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            layout=value.layout,
            device=value.device,
        )
        made.value, made.labels, made.owner, made.lit = value, labels, owner, lit
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Labelled({tuple(self.shape)}, {self.dtype})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        from fastalter.structure.grouping.rules import apply

        return apply(func, args, kwargs or {})


def value_of(x: Any) -> Any:
    """The plain tensor of a Labelled one; anything else as it is."""
    return x.value if isinstance(x, Labelled) else x


def plain(tree: Any) -> Any:
    """A tree of arguments or results without labels."""
    return map_tensors(tree, value_of)


@dataclass(frozen=True)
class Exit:
    """The channels that a layer makes: position i of `axis` of its weight has the fresh label `ids[i]`."""

    layer: str
    weight: str
    bias: str | None
    axis: int
    ids: Tensor
    heads: bool = False


@dataclass(frozen=True)
class Norm:
    """A norm with an affine map, straight behind the channels `sources` (labels of exits; 0: of none)."""

    layer: str
    weight: str
    bias: str | None
    sources: Tensor


@dataclass(frozen=True)
class Reads:
    """A layer that sums over channels: position i of `axis` of its weight reads the label `ids[i]`."""

    layer: str
    weight: str
    axis: int
    ids: Tensor


@dataclass
class Trace:
    """Everything that a forward pass says about channels."""

    model: nn.Module
    classes: Classes = field(default_factory=Classes)
    axes: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    elementwise: dict[str, Tensor] = field(default_factory=dict)
    exits: dict[str, Exit] = field(default_factory=dict)
    norms: dict[str, Norm] = field(default_factory=dict)
    reads: dict[tuple[str, int], Reads] = field(default_factory=dict)
    passes: dict[str, Tensor] = field(default_factory=dict)
    counts: list[tuple[str, str, Tensor]] = field(default_factory=list)
    layer_norms: list[tuple[str, Tensor]] = field(default_factory=list)
    pins: list[tuple[Tensor, str]] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)
    bare: list[Tensor] = field(default_factory=list)
    contracted: list[Tensor] = field(default_factory=list)
    flops: dict[str, float] = field(default_factory=dict)
    class_flops: list[tuple[Tensor, float]] = field(default_factory=list)
    suspended: bool = False

    def __post_init__(self) -> None:
        self.tensors = dict(self.model.named_buffers()) | dict(self.model.named_parameters())
        self.names = {id(tensor): name for name, tensor in self.tensors.items()}
        self.paths = {id(module): path for path, module in self.model.named_modules()}
        self.stack: list[nn.Module] = []

    @property
    def here(self) -> str:
        """The module that is running, for messages."""
        path = next((self.paths[id(m)] for m in reversed(self.stack) if id(m) in self.paths), "")
        return path or type(self.model).__name__

    def name_of(self, tensor: Any) -> str | None:
        """A parameter's or buffer's name in the state dict; None of any other tensor."""
        return self.names.get(id(tensor))

    def axis(self, name: str, axis: int) -> Tensor:
        """The labels of an axis of a parameter or buffer, the same ones at every use."""
        if (name, axis) not in self.axes:
            self.axes[name, axis] = self.classes.new(self.tensors[name].shape[axis])
        return self.axes[name, axis]

    def every(self, name: str) -> Tensor:
        """The labels of all elements of a parameter that is used as data, not as a layer's weight."""
        if name not in self.elementwise:
            shape = self.tensors[name].shape
            self.elementwise[name] = self.classes.new(shape.numel()).view(shape)
        return self.elementwise[name]

    def pin(self, labels: Tensor, reason: str) -> None:
        """These channels stay, all of them, and that is why."""
        found = torch.unique(strip(labels).abs())
        if len(found := found[found != NOTHING]):
            self.pins.append((found, f"{reason}, in {self.here}"))

    def settled(self, labels: Tensor) -> Tensor:
        """The labels behind anything that is neither a move nor a norm: no longer fresh."""
        short = strip(labels)
        if len(fresh := torch.unique(short[short < 0])):
            self.bare.append(-fresh)
        return short.abs().expand(labels.shape)

    def made_by(self, layer: str, weight: str, bias: str | None, axis: int = 0) -> Tensor:
        """Fresh labels of the channels that a layer makes."""
        ids = self.axis(weight, axis)
        if bias is not None:
            self.classes.unite(ids, self.axis(bias, 0))
        self.exits.setdefault(weight, Exit(layer, weight, bias, axis, ids))
        return -ids

    def read_by(self, layer: str, weight: str, axis: int, channels: Tensor) -> None:
        """A layer's weight reads these channels along one of its axes."""
        ids = self.axis(weight, axis)
        self.classes.unite(self.settled(channels), ids)
        self.pin(ids[channels == NOTHING], "it also reads data that has no channels")
        self.reads.setdefault((weight, axis), Reads(layer, weight, axis, ids))

    def count(self, module: nn.Module, attribute: str, labels: Tensor) -> None:
        """An integer attribute counts these labels."""
        if id(module) in self.paths:
            self.counts.append((self.paths[id(module)], attribute, labels.abs()))

    def add_flops(self, weight: str, per_entry: float) -> None:
        """Operations that every entry of a weight takes part in."""
        self.flops[weight] = self.flops.get(weight, 0.0) + per_entry

    def labelled(self, value: Tensor, labels: Tensor, lit: bool = False) -> Tensor:
        """The value with its labels; plain where it has none."""
        return Labelled(value, labels, self, lit) if bool((strip(labels) != NOTHING).any()) else value

    @contextmanager
    def off(self) -> Iterator[None]:
        """Run something as it is, on plain tensors."""
        before, self.suspended = self.suspended, True
        try:
            yield
        finally:
            self.suspended = before

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Know which module is running."""
        hooks = nn.modules.module
        enter = hooks.register_module_forward_pre_hook(lambda module, _: self.stack.append(module))

        def leave(module: nn.Module, *_: Any) -> None:
            self.stack.pop()

        handles = [enter, hooks.register_module_forward_hook(leave, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.stack.clear()


class Tracing(TorchFunctionMode):
    """Sends functions that take parameters to their layer's rule, and gives parameters used as data their labels."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from fastalter.structure.grouping.rules.functions import FACTORIES, FUNCTIONS, PLAIN, canvas

        kwargs = kwargs or {}
        if self.trace.suspended or getattr(func, "__name__", "") == "__get__":  # x.shape, x.dtype
            return func(*args, **kwargs)
        if rule := FUNCTIONS.get(func):
            result = rule(self.trace, func, *args, **kwargs)
            if result is not NotImplemented:
                return result
        if func in FACTORIES:
            return canvas(self.trace, func(*args, **kwargs))
        if func in PLAIN:
            return func(*plain(args), **plain(kwargs))
        return func(*map_tensors(args, self._as_data), **map_tensors(kwargs, self._as_data))

    def _as_data(self, tensor: Tensor) -> Tensor:
        name = self.trace.name_of(tensor)
        if name is None or not tensor.is_floating_point() or isinstance(tensor, Labelled):
            return tensor
        return Labelled(tensor.detach(), self.trace.every(name), self.trace)
