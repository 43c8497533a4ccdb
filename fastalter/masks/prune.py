"""A model pruned for good: its pruned weights are zero now, and stay zero whatever trains or loads it."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping

from torch import nn

from fastalter.errors import MaskError
from fastalter.fusion.adapt import FusionModel
from fastalter.masks.hold import Bits, Hold, holds_in, zero
from fastalter.masks.mask import Mask, unpack
from fastalter.masks.places import Place, places
from fastalter.ops.checks import FLOATS


class Pruned:
    """What `prune_model` returns. Holding does not depend on keeping it, and it does not keep the model.

    mask  the mask that is held
    """

    def __init__(self, mask: Mask, holds: list[Hold]) -> None:
        self.mask = mask
        self._holds = [weakref.ref(hold) for hold in holds]

    @property
    def held(self) -> bool:
        """Whether hooks hold the zeros: not after `remove`, nor once a later mask took over, nor without the model."""
        return any(ref() is not None for ref in self._holds)

    def apply(self) -> None:
        """Enforce the zeros now: after weights were written by hand, past every optimizer and load_state_dict.

        Raises:
            MaskError: the mask is not held any more, or a weight has another shape by now.
        """
        if not self.held:
            raise MaskError("this mask is not held any more; call prune_model with it again")
        zero(self._alive(), gradients=True)

    def remove(self) -> None:
        """Release every hook. The weights stay as they are: zero until something changes them."""
        for hold in self._alive():
            hold.release()
        self._holds.clear()

    def _alive(self) -> list[Hold]:
        return [hold for ref in self._holds if (hold := ref()) is not None]

    def __repr__(self) -> str:
        kept, size = self.mask.kept_total, self.mask.layout.size
        state = "zeros held" if self.held else "not held any more"
        return f"Pruned({kept:,} of {size:,} weights kept in {len(self.mask)} layers; {state})"


def prune_model(model: nn.Module | FusionModel, mask: Mask) -> Pruned:
    """Zero the weights that the mask drops, and hold them at exactly zero.

    They are zero after every step of any torch.optim.Optimizer (momentum, weight decay, foreach, fused, closures,
    GradScaler) and after load_state_dict; their gradients are zero after every backward, before clipping, so that norms
    and moments are those of the sparse network. Copies (copy.deepcopy, AveragedModel, pickle) are held as well. An
    average made before pruning is a model of its own: call prune_model on it too. Weights written in other ways
    (an optimizer that is no torch.optim.Optimizer, .data, init) need `Pruned.apply()`.

    Nothing else about the model changes: parameters keep identity, storage, strides and requires_grad; its state_dict
    holds the zeros and no key more, and loads into a plain model. No mask is expanded: one bit per weight is kept.

    A model has one mask. Pruning it (or a model that contains it) again puts the new mask in the place of the old: to
    prune in steps, make each mask keep a part of the one before. A weight that only the old one dropped is free again,
    from zero; a UserWarning counts such weights.

    Args:
        model: any module, or what `fusion.adapt` made of one. See `masks.places.places` for names under wrappers.
        mask: of this model: the same names and shapes. One over channels zeroes every slice of those that go: rows and
            columns of weights, biases, entries of norms (buffers stay); `Pruned.mask` is then the mask over weights.

    Raises:
        MaskError: a weight that the mask covers is missing, has another shape or dtype, or is computed from others. The
            model is then as it was.
    """
    network = model.model if isinstance(model, FusionModel) else model
    mask = mask.weights()
    found = places(network, mask)
    for name, place in found.items():
        if place.weight.dtype not in FLOATS:
            raise MaskError(f"{name} is {place.weight.dtype}; prune a model of float32, float64, bfloat16 or float16")
    freed = _release_earlier(network, mask, found)
    if freed:
        text = f"the model's earlier mask is replaced: {freed:,} weights that it pruned are free again, from zero"
        warnings.warn(text, UserWarning, stacklevel=2)
    bits: Bits = {mask.bits.device: mask.bits}
    owners = _owners(network)
    holds = [
        Hold(name, module, last, bits, mask.layout[name].offset)
        for name, place in found.items()
        for module, last in owners[id(place.weight)]
    ]
    zero(holds, gradients=True)
    return Pruned(mask, holds)


def _owners(network: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """id(parameter) -> every module that has it, and as what: loading through any of them writes it."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in network.modules():
        for last, parameter in module._parameters.items():
            owners.setdefault(id(parameter), []).append((module, last))
    return owners


def _release_earlier(network: nn.Module, mask: Mask, found: Mapping[str, Place]) -> int:
    """Release what held weights of this model; how many weights were pruned and now are not."""
    names = {id(place.weight): name for name, place in found.items()}
    freed, seen = 0, set()
    for hold in holds_in(network):
        weight = hold.parameters.get(hold.last)
        if weight is not None and weight.shape == hold.shape and id(weight) not in seen:
            seen.add(id(weight))
            pruned = ~unpack(next(iter(hold.bits.values())).cpu(), hold.offset, tuple(weight.shape))
            name = names.get(id(weight))
            freed += int((pruned if name is None else pruned & mask[name]).sum())
        hold.release()
    return freed
