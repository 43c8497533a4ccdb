"""A model under a mask, for the length of a block: to evaluate a mask before anything is changed for good."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from fastalter import ops
from fastalter.fusion.stubs import replaced_forwards
from fastalter.fusion.weights import is_plain_conv2d
from fastalter.masks.mask import Mask
from fastalter.masks.places import places
from fastalter.ops import backends


@contextmanager
def masked(model: nn.Module, mask: Mask) -> Iterator[nn.Module]:
    """Run `model` as mu * theta inside the block; afterwards its weights are bitwise what they were.

    A mask over channels takes their norms' entries and biases too.

    On a GPU, linear and convolution layers mask their weight as they load it, and the weights are never touched. All
    else (the CPU, sparse convolutions, attention projections, grouped convolutions) is zeroed in place and put back,
    also after an exception, whatever happened to it inside.

    Raises:
        MaskError: the model has no weight of that name, or it has another shape, or is computed from others.
    """
    mask = mask.weights()
    found = places(model, mask)
    bits = {device: mask.bits.to(device) for device in {place.weight.device for place in found.values()}}
    on_load: dict[str, Callable[[Tensor], Tensor]] = {}
    in_place: dict[str, Tensor] = {}
    for name, place in found.items():
        module, weight = place.module, place.weight
        if place.last == "weight" and masks_on_load(module, weight):
            on_load[place.path] = partial(masked_forward, module, bits[weight.device], mask.layout[name].offset)
        else:
            in_place[name] = weight
    with ExitStack() as stack:
        stack.enter_context(_zeroed(in_place, mask, bits))
        stack.enter_context(replaced_forwards(on_load, model))
        yield model


def masks_on_load(module: nn.Module, weight: Tensor) -> bool:
    """Whether a fused op can stand in for the layer: a plain one, on a GPU that has the kernel."""
    if weight.device.type != "cuda" or backends.serving("masked_linear", "cuda").name != "triton":
        return False
    return is_plain_layer(module)


def is_plain_layer(module: nn.Module) -> bool:
    """Linear, or a convolution as the op computes it, and no subclass that may do more."""
    return type(module) is nn.Linear or is_plain_conv2d(module)


def masked_forward(module: nn.Module, bits: Tensor, offset: int, x: Tensor) -> Tensor:
    """The layer's forward with its weight masked on load; under autocast in the dtype that torch would choose."""
    assert isinstance(module, (nn.Linear, nn.Conv2d))
    weight, bias = module.weight, module.bias
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if isinstance(module, nn.Linear):
        return ops.masked_linear(x, weight, bits, offset, bias)
    geometry = (module.stride, module.padding, module.dilation)
    unbatched = x.dim() == 3
    y = ops.masked_conv2d(x[None] if unbatched else x, weight, bits, offset, bias, *geometry)  # type: ignore[arg-type]
    return y[0] if unbatched else y


@contextmanager
def _zeroed(weights: dict[str, Tensor], mask: Mask, bits: dict[torch.device, Tensor]) -> Iterator[None]:
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        for device, of_device in bits.items():
            here = {name: weight for name, weight in weights.items() if weight.device == device}
            ops.apply_mask(list(here.values()), of_device, [mask.layout[name].offset for name in here])
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])
