"""One weight held at zero where its mask says: the hooks that do it, and their lifetime.

A hold belongs to the module that owns the weight (through the module's load_state_dict hook) and to nothing else: it is
copied with the module, pickled with it, and gone with it. The parameter's gradient hook and the one hook on all
optimizers know holds by weak reference only; the latter exists while there are holds.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from fastalter import ops
from fastalter.errors import MaskError
from fastalter.ops.checks import is_dense

Bits = dict[torch.device, Tensor]
"""A mask's packed bits, on every device that they were needed on."""


class Hold:
    """Parameter `last` of a module, held: element j stays free where bit offset + j is set, and is zero elsewhere.

    name  of the weight in the mask, for messages
    """

    _unhook: Callable[[], object]

    def __init__(self, name: str, module: nn.Module, last: str, bits: Bits, offset: int) -> None:
        self.name, self.last, self.bits, self.offset = name, last, bits, offset
        # The module's own dicts rather than the module, so that no cycle keeps a dropped model in memory.
        self.parameters = module._parameters
        weight = self.parameters[last]
        assert weight is not None
        self.shape = weight.shape
        module.register_load_state_dict_post_hook(self)  # type: ignore[no-untyped-call]
        self._hooks = weakref.ref(module._load_state_dict_post_hooks)
        self._start(weight)

    @property
    def weight(self) -> nn.Parameter | None:
        """The module's parameter as it is now; None where the module has none of that name any more.

        Raises:
            MaskError: it has another shape than the mask.
        """
        weight = self.parameters.get(self.last)
        if weight is not None and weight.shape != self.shape:
            shapes = f"{tuple(weight.shape)}, its mask {tuple(self.shape)}"
            raise MaskError(f"{self.name} is held pruned and now has shape {shapes}; call remove() before changing it")
        return weight

    def __call__(self, module: nn.Module, incompatible_keys: Any) -> None:
        """After load_state_dict of the module, or of one that contains it."""
        zero([self])

    def release(self) -> None:
        """Leave the weight alone from now on. It stays as it is."""
        hooks = self._hooks() or {}
        for key in [key for key, hook in hooks.items() if hook is self]:
            del hooks[key]
        self._unhook()
        _forget(weakref.ref(self))

    def watch(self) -> None:
        """See that the parameter's gradient is masked; load_state_dict(assign=True) puts in another parameter."""
        weight = self.weight
        if weight is not None and self._gradient_hook not in (weight._post_accumulate_grad_hooks or {}).values():
            self._unhook()
            self._unhook = finalizer = weakref.finalize(self, _on_gradient(weight, self._gradient_hook).remove)
            finalizer.atexit = False

    def _start(self, weight: nn.Parameter | None) -> None:
        self._gradient_hook = _gradient_hook(weakref.ref(self))
        self._unhook = weakref.finalize(self, lambda: None)
        if weight is not None:
            self.watch()
        _remember(self)

    # A copy (deepcopy, pickle) takes the copies of the module's dicts along, and is a hold of its own.
    def __getstate__(self) -> dict[str, Any]:
        plain = {key: getattr(self, key) for key in ("name", "last", "bits", "offset", "shape", "parameters")}
        return {**plain, "hooks": self._hooks()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        hooks = state.pop("hooks")
        self.__dict__.update(state)
        self._hooks = weakref.ref(hooks)
        self._start(self.parameters.get(self.last))


def zero(held: Iterable[Hold], *, gradients: bool = False) -> None:
    """Put zeros into the pruned weights, and into gradients that are there, in one call per mask and device.

    Raises:
        MaskError: a weight has another shape by now.
    """
    tensors: list[tuple[Tensor, Hold]] = []
    for hold in held:
        hold.watch()
        weight = hold.weight
        if weight is not None:
            tensors.append((weight, hold))
            if gradients and weight.grad is not None:
                tensors.append((weight.grad, hold))
    _zero(tensors)


def holds_in(model: nn.Module) -> list[Hold]:
    """The holds on the model's own modules."""
    inside = {id(module._parameters) for module in model.modules()}
    return [hold for hold in _all() if id(hold.parameters) in inside]


def _zero(tensors: list[tuple[Tensor, Hold]]) -> None:
    groups: dict[tuple[int, torch.device], dict[int, tuple[Tensor, Hold]]] = {}
    for tensor, hold in tensors:
        if tensor.layout == torch.strided:  # a sparse gradient stays; the weight is zeroed after the step all the same
            groups.setdefault((id(hold.bits), tensor.device), {})[id(tensor)] = (tensor, hold)
    for (_, device), members in groups.items():
        bits = _on(next(iter(members.values()))[1].bits, device)
        # The op takes memory without gaps; a view with gaps is rare and goes through a copy.
        dense = [tensor if is_dense(tensor) else tensor.detach().contiguous() for tensor, _ in members.values()]
        ops.apply_mask(dense, bits, [hold.offset for _, hold in members.values()])
        with torch.no_grad():
            for (tensor, _), through in zip(members.values(), dense, strict=True):
                if through is not tensor:
                    tensor.copy_(through)


def _on(bits: Bits, device: torch.device) -> Tensor:
    if device not in bits:
        bits[device] = next(iter(bits.values())).to(device)
    return bits[device]


def _gradient_hook(of: weakref.ref[Hold]) -> Callable[[Tensor], None]:
    def mask_gradient(weight: Tensor) -> None:
        hold = of()
        if hold is not None and weight.grad is not None and weight.shape == hold.shape:
            _zero([(weight.grad, hold)])

    return mask_gradient


def _on_gradient(weight: nn.Parameter, hook: Callable[[Tensor], None]) -> RemovableHandle:
    frozen = not weight.requires_grad
    weight.requires_grad_(True)  # a frozen parameter takes no hook, and may be thawed later
    handle: RemovableHandle = weight.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    weight.requires_grad_(not frozen)
    return handle


# ---- all holds of the process, and the hook that follows every optimizer's step -------------------------------------

_held: dict[weakref.ref[Hold], None] = {}
_step_hook: RemovableHandle | None = None


def _all() -> Iterator[Hold]:
    return (hold for ref in list(_held) if (hold := ref()) is not None)


def _remember(hold: Hold) -> None:
    global _step_hook
    _held[weakref.ref(hold, _forget)] = None
    if _step_hook is None:
        _step_hook = register_optimizer_step_post_hook(_after_step)


def _forget(ref: weakref.ref[Hold]) -> None:
    global _step_hook
    _held.pop(ref, None)
    if not _held and _step_hook is not None:
        _step_hook.remove()
        _step_hook = None


def _after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    zero(hold for hold in _all() if id(hold.parameters.get(hold.last)) in stepped)
