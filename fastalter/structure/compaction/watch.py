"""Which batch norms stand directly behind a layer that can take them in: watched in one forward pass.

A pair is found by identity: the norm's input is the very tensor that the layer gave, and nothing else reads that
tensor. That the norm is the map y = s * x + t that its statistics say is checked on its numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from fastalter.fusion.tree import tensors
from fastalter.structure.compaction.fold import scale_and_shift, takes_norm

LOOKS = (
    *("shape", "dtype", "device", "ndim", "layout", "is_cuda", "is_sparse", "is_quantized", "is_nested", "size", "dim"),
    *("numel", "stride", "requires_grad", "grad_fn", "is_contiguous", "is_floating_point", "contiguous", "__len__"),
)
"""What asks about a tensor, or hands it on as it is, without reading its values. (To ask for its `data_ptr` is to read:
so does spconv.)
"""
TOLERANCE = 1e-3
"""Of a norm's largest output: how far it may be from s * x + t. Another function is further off; rounding is not."""


@dataclass
class Foldable:
    """What `find_folds` saw.

    pairs  (layer's path, batch norm's path): may be folded
    left   batch norm's path -> why it may not
    """

    pairs: list[tuple[str, str]] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


def find_folds(model: nn.Module, forward: Callable[[nn.Module], object]) -> Foldable:
    """Watch forward(model) in eval mode, and say which batch norms can be folded. The model stays as it is."""
    watch = _Watch(model)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with watch.hooks(), watch, torch.no_grad():
            output = forward(model)
    finally:
        for module, training in modes.items():
            module.training = training
    watch.read(output)
    return watch.result()


@dataclass
class _Given:
    """A tensor that a layer gave. It is kept, so that its id stays its own."""

    layer: nn.Module
    value: Tensor
    reads: int = 0


class _Watch(TorchFunctionMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.paths = {module: path for path, module in model.named_modules()}
        self.owners = Counter(id(p) for m in self.paths for p in m._parameters.values() if p is not None)
        self.given: dict[int, _Given] = {}
        self.inputs: dict[nn.Module, list[Tensor]] = {m: [] for m in self.paths if isinstance(m, _BatchNorm)}
        self.odd: set[nn.Module] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(func.__self__, "__name__", "")
        if name not in LOOKS:
            self.read((args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def read(self, values: object) -> None:
        """Something reads these tensors."""
        for value in tensors(values):
            if id(value) in self.given:
                self.given[id(value)].reads += 1

    def hooks(self) -> ExitStack:
        """Watching every layer and every norm, for the length of a block."""
        stack = ExitStack()
        for module in self.paths:
            if takes_norm(module):
                stack.callback(module.register_forward_hook(self._gave).remove)
            if isinstance(module, _BatchNorm):
                stack.callback(module.register_forward_hook(self._normed).remove)
        return stack

    def _gave(self, module: nn.Module, args: Any, output: Any) -> None:
        value = getattr(output, "features", output)
        if isinstance(value, Tensor):
            self.given[id(value)] = _Given(module, value)

    def _normed(self, module: nn.Module, args: Any, output: Any) -> None:
        self.inputs[module].append(args[0])
        if not _is_affine(module, args[0], output):
            self.odd.add(module)

    def result(self) -> Foldable:
        found = Foldable()
        layers = {norm: self._layers_before(norm) for norm in self.inputs}
        for norm in self.inputs:
            reason = self._obstacle(norm, layers[norm], layers)
            if reason is None:
                layer = next(iter(layers[norm]))
                assert layer is not None
                found.pairs.append((self.paths[layer], self.paths[norm]))
            else:
                found.left[self.paths[norm]] = reason
        return found

    def _layers_before(self, norm: nn.Module) -> set[nn.Module | None]:
        given = (self.given.get(id(value)) for value in self.inputs[norm])
        return {None if one is None else one.layer for one in given}

    def _obstacle(
        self, norm: nn.Module, before: set[nn.Module | None], layers: dict[nn.Module, set[nn.Module | None]]
    ) -> str | None:
        if not before:
            return "it was not run"
        if norm in self.odd:
            return "it does not compute s * x + t with its own statistics"
        if None in before:
            return "its input is not what a convolution or linear layer gave"
        if len(before) > 1:
            return "it stands behind several layers"
        (layer,) = before
        assert layer is not None
        path = self.paths[layer]
        if sum(layer in others for others in layers.values()) > 1:
            return f"{path} stands before several norms"
        mine = [one for one in self.given.values() if one.layer is layer]
        if any(one.reads != 1 for one in mine) or len(mine) != len(self.inputs[norm]):
            return f"something else reads what {path} gives"
        if isinstance(layer, nn.Linear) and any(one.value.dim() != 2 for one in mine):
            return f"it normalises another axis than {path} gives channels on"
        return self._unfit(layer, path)

    def _unfit(self, layer: nn.Module, path: str) -> str | None:
        weight = layer._parameters.get("weight")
        if weight is None or not _has_known_forward(layer) or layer._forward_hooks or layer._forward_pre_hooks:
            return f"{path} is not a plain layer with a weight of its own"
        if any(self.owners[id(p)] > 1 for p in layer._parameters.values() if p is not None):
            return f"{path} shares its weights"
        return None


def _has_known_forward(layer: nn.Module) -> bool:
    """Whether it runs torch's or spconv's own forward, and no subclass's."""
    owner = next(cls for cls in type(layer).__mro__ if "forward" in vars(cls))
    return owner.__module__.startswith(("torch.nn.", "spconv."))


@torch.no_grad()
def _is_affine(norm: nn.Module, x: Tensor, y: object) -> bool:
    assert isinstance(norm, _BatchNorm)
    if norm.running_mean is None or norm.running_var is None or not isinstance(y, Tensor) or y.shape != x.shape:
        return False
    with torch._C.DisableTorchFunction():
        shape = [1, -1, *[1] * (x.dim() - 2)]
        scale, shift = (value.view(shape) for value in scale_and_shift(norm))
        expected = x.double() * scale + shift
        worst, peak = ((value.abs().max() if len(x) else torch.zeros(())) for value in (expected - y, expected))
        return bool(worst <= TOLERANCE * peak)
