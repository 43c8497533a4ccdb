"""A network's bird's-eye-view maps for looking at: how strongly each branch and the fusion answer, place by place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastalter.errors import ModelError
from fastalter.fusion.adapt import FUSION, FusionModel
from fastalter.fusion.fuse_block import block_at
from fastalter.fusion.stubs import first_tensor, replaced_forwards


@torch.no_grad()
def bev_maps(fusion: FusionModel, batch: Any) -> dict[str, Tensor]:
    """Mean absolute activation over the channels, for every sample of one batch.

    One forward of the loss, without gradients, under whatever stubs are in place: inside `stubs.replayed` a masked
    branch shows its zeros. Batch norm's running statistics move as in any forward; `preserve.preserved` puts them back.

    Returns:
        branch -> [B, X, Y] float32 on the CPU of its outlet's feature [B, C, X, Y]; "fusion" -> the same of what leaves
        the fuser, for a network that names its `concat_conv`.

    Raises:
        ModelError: an outlet does not run, or its feature is no map [B, C, X, Y].
    """
    places = dict(fusion.outlets)
    if (fuser := fuser_outlet(fusion)) is not None:
        places[FUSION] = fuser
    found: dict[str, Tensor] = {}

    def watching(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            if name not in found:  # at once: what comes after may work in place
                found[name] = _strength(output, places[name])
            return output

        return run

    forwards = {path: watching(name, fusion.model.get_submodule(path).forward) for name, path in places.items()}
    with replaced_forwards(forwards, fusion.model):
        fusion.loss(fusion.model, batch)
    for name, path in places.items():
        if name not in found:
            raise ModelError(f"{path}: the loss does not run it, so {name} has no map to show; name another outlet")
    return found


def fuser_outlet(fusion: FusionModel) -> str | None:
    """Path of the module that the fused map leaves, the last of convolution, norm and ReLU; None if not known."""
    if fusion.concat_conv is None:
        return None
    block = block_at(fusion.model, fusion.concat_conv)
    return fusion.concat_conv if block is None else block.paths[-1]


def _strength(output: Any, path: str) -> Tensor:
    feature = first_tensor([output])
    if feature is None or feature.dim() != 4:
        kind = type(output).__name__ if feature is None else f"tensor of shape {list(feature.shape)}"
        raise ModelError(f"{path}: returned a {kind}, not a map [B, C, X, Y]; only maps can be shown from above")
    return feature.detach().abs().mean(1).float().cpu()
