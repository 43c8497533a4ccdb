"""Where a mask's weights are in a model: by name, whatever wrappers stand around the model or were around it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from fastalter.errors import MaskError
from fastalter.masks.mask import Mask

COMPILED = "_orig_mod"
PARALLEL = "module."


@dataclass(frozen=True)
class Place:
    """A weight of a model: parameter `last` of the module at `path`."""

    path: str
    module: nn.Module
    last: str

    @property
    def weight(self) -> nn.Parameter:
        """The parameter that is there now."""
        weight = self.module._parameters[self.last]
        assert weight is not None
        return weight


def places(model: nn.Module, mask: Mask) -> dict[str, Place]:
    """Mask's name -> place, for everything that the mask covers.

    Names are those of the model itself: torch.compile's "_orig_mod." is passed over anywhere, the "module." of
    DataParallel and DistributedDataParallel where it stands before all names; on either side.

    Raises:
        MaskError: the model has no weight of that name, it has another shape, or it is no parameter of its own.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    real = [f"{path}.{last}".lstrip(".") for path, module in modules.items() for last in module._parameters]
    exact, unwrapped = {name: name for name in real}, dict(zip(plain_names(real), real, strict=True))
    found = {}
    for entry, plain in zip(mask.layout.entries, plain_names(mask), strict=True):
        name = exact.get(entry.name) or unwrapped.get(plain) or entry.name
        path, _, last = name.rpartition(".")
        module = modules.get(path)
        weight = None if module is None else module._parameters.get(last)
        if module is None or weight is None:
            raise MaskError(f"{entry.name}: {_why_none(module, last)}")
        if isinstance(weight, UninitializedParameter):
            raise MaskError(f"{entry.name} is not initialised yet; run one batch through the model first")
        if tuple(weight.shape) != entry.shape:
            shapes = f"{entry.shape} in the mask and {tuple(weight.shape)} in the model"
            raise MaskError(f"{entry.name}: its shape is {shapes}; use the mask's own model")
        found[entry.name] = Place(path, module, last)
    return found


def plain_names(names: Iterable[str]) -> list[str]:
    """Parameter names as the model itself would give them, in the same order."""
    plain = [".".join(part for part in name.split(".") if part != COMPILED) for name in names]
    while plain and all(name.startswith(PARALLEL) for name in plain):
        plain = [name.removeprefix(PARALLEL) for name in plain]
    return plain


def _why_none(module: nn.Module | None, last: str) -> str:
    if isinstance(getattr(module, last, None), Tensor):
        return (
            "the model computes this weight from others (a parametrization, or torch.nn.utils.prune); "
            "make it a parameter again first"
        )
    return "the mask covers this weight and the model has none; use the mask's own model"
