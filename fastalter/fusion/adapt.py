"""Which modules of a network belong to which sensor: everything that scoring needs to know of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastalter.errors import ModelError, ScoringError
from fastalter.fusion.tree import tensors

FUSION = "fusion"
"""The branch of everything that belongs to no sensor: fuser, decoder, heads, and parameters that branches share."""

Loss = Callable[[nn.Module, Any], Any]

KNOWN_LAYOUTS: dict[str, tuple[dict[str, list[str]], dict[str, str]]] = {
    "mit-han-lab/bevfusion": (
        {
            "camera": ["encoders.camera.backbone", "encoders.camera.neck", "encoders.camera.vtransform"],
            "lidar": ["encoders.lidar.backbone"],
        },
        {"camera": "encoders.camera.vtransform", "lidar": "encoders.lidar.backbone"},
    ),
    "mmdetection3d projects/BEVFusion": (
        {"camera": ["img_backbone", "img_neck", "view_transform"], "lidar": ["pts_middle_encoder"]},
        {"camera": "view_transform", "lidar": "pts_middle_encoder"},
    ),
}


@dataclass(frozen=True)
class FusionModel:
    """A network and its seam. Made by `adapt`.

    model        the user's module, never re-pointed or wrapped
    branches     branch name -> paths of its top modules; the rest of the model is the branch "fusion"
    outlets      branch name -> path of the module whose output is the branch's feature
    loss         loss(model, batch) -> scalar tensor or dict of tensors
    concat_conv  path of a convolution whose input is cat(outlets in branch order, dim=1), or None
    """

    model: nn.Module
    branches: Mapping[str, tuple[str, ...]]
    outlets: Mapping[str, str]
    loss: Loss
    concat_conv: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def branch_names(self) -> list[str]:
        """Sensor branches in order, then "fusion": the order of the arena."""
        return [*self.branches, FUSION]

    def modules_of(self, branch: str) -> list[tuple[str, nn.Module]]:
        """The branch's top modules that have a forward of their own, containers opened."""
        return [item for path in self.branches[branch] for item in _callable(path, self.model.get_submodule(path))]

    def total_loss(self, batch: Any) -> Tensor:
        """The scalar to differentiate.

        Raises:
            ScoringError: the loss returns no differentiable scalar, or one that is not finite.
        """
        return sum_losses(self.loss(self.model, batch))


def _callable(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        for name, child in module.named_children():
            yield from _callable(f"{path}.{name}", child)
    else:
        yield path, module


def sum_losses(losses: Any) -> Tensor:
    """A scalar from what a loss returned: a tensor, or a dict whose entries named "...loss..." are summed."""
    if isinstance(losses, Mapping):
        losses = {name: value for name, value in losses.items() if "loss" in name}
        parts = [part for part in tensors(losses) if part.requires_grad]
    else:
        parts = [part for part in tensors(losses) if part.requires_grad]
    if not parts:
        raise ScoringError(
            "the loss returned nothing differentiable; return a scalar tensor, or a dict with keys like 'loss_bbox'"
        )
    total = parts[0].mean()
    for part in parts[1:]:
        total = total + part.mean()
    if not bool(torch.isfinite(total)):
        raise ScoringError(f"the loss is {total.item()}; look for NaN or huge values in the batch and the weights")
    return total


def adapt(
    model: nn.Module | FusionModel,
    *,
    branches: Mapping[str, Sequence[str]] | None = None,
    outlets: Mapping[str, str] | None = None,
    loss: Loss | None = None,
    concat_conv: str | None = None,
) -> FusionModel:
    """Describe where a fusion model's branches are; the only thing a user's own model needs.

    Args:
        model: any nn.Module; MIT and mmdetection3d BEVFusion module names are recognised, and so is a model that
            declares `branches`, `outlets` (and `concat_conv`) as attributes.
        branches: branch name -> dotted paths of its top modules, as {"camera": ["img_backbone"], "lidar": ["pts"]}.
        outlets: branch name -> dotted path of the module whose output is the branch's feature. May be left out where a
            branch has one module.
        loss: loss(model, batch) -> scalar tensor, or a dict whose entries named "...loss..." are summed.
            Default: model.loss(batch).
        concat_conv: path of a convolution over cat(outlet features in branch order, dim=1). It is linear, so that the
            modality masks share its work. Optional; in-tree models declare it.

    Raises:
        ModelError: the layout is not recognised, a path does not exist, branches overlap, or there is no loss.
    """
    if isinstance(model, FusionModel):
        return model
    if branches is None:
        branches, outlets, concat_conv = _recognise(model, outlets, concat_conv)
    spec = {name: tuple([paths] if isinstance(paths, str) else paths) for name, paths in branches.items()}
    exits = dict(outlets or {})
    for name, paths in spec.items():
        if name not in exits and len(paths) == 1:
            exits[name] = paths[0]
    _check(model, spec, exits)
    for path in [concat_conv] if concat_conv else []:
        _submodule(model, path, "concat_conv")
    return FusionModel(model, spec, exits, loss or _own_loss(model), concat_conv)


def _recognise(
    model: nn.Module, outlets: Mapping[str, str] | None, concat_conv: str | None
) -> tuple[Mapping[str, Sequence[str]], Mapping[str, str], str | None]:
    declared = getattr(model, "branches", None)
    if isinstance(declared, Mapping):
        return declared, outlets or getattr(model, "outlets", {}), concat_conv or getattr(model, "concat_conv", None)
    paths = {name for name, _ in model.named_modules()}
    for branches, exits in KNOWN_LAYOUTS.values():
        if all(path in paths for tops in branches.values() for path in tops):
            return branches, outlets or exits, concat_conv
    children = ", ".join(name for name, _ in model.named_children()) or "none"
    raise ModelError(
        f"{type(model).__name__}: not a layout that fastalter knows (top modules: {children}); "
        "pass branches={'camera': [...], 'lidar': [...]} and outlets={'camera': ..., 'lidar': ...}"
    )


def _own_loss(model: nn.Module) -> Loss:
    if not callable(getattr(model, "loss", None)):
        raise ModelError(f"{type(model).__name__} has no method loss(batch); pass loss=function(model, batch)")
    return lambda network, batch: network.loss(batch)  # type: ignore[operator]


def _submodule(model: nn.Module, path: str, where: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        parent = path.rpartition(".")[0]
        try:
            names = ", ".join(name for name, _ in model.get_submodule(parent).named_children())
        except AttributeError:
            names = ", ".join(name for name, _ in model.named_children())
        raise ModelError(f"{where}: {type(model).__name__} has no module {path!r}; there are: {names}") from None


def _check(model: nn.Module, branches: Mapping[str, tuple[str, ...]], outlets: Mapping[str, str]) -> None:
    if len(branches) < 2:
        raise ModelError(f"branches: alternate masking needs two sensors or more, got {list(branches)}; name both")
    if FUSION in branches:
        raise ModelError("branches: 'fusion' is the name of all that belongs to no sensor; leave it out")
    owner: dict[str, str] = {}
    for name, paths in branches.items():
        for path in paths:
            _submodule(model, path, f"branches[{name!r}]")
            for other, claimed in owner.items():
                if f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}."):
                    raise ModelError(
                        f"branches: {path!r} of {name!r} and {other!r} of {claimed!r} overlap; a module has one branch"
                    )
            owner[path] = name
        if name not in outlets:
            raise ModelError(f"outlets: no outlet for branch {name!r}; name the module whose output is its feature")
        tops = [top for path in paths for top, _ in _callable(path, model.get_submodule(path))]
        if outlets[name] not in tops:
            raise ModelError(
                f"outlets[{name!r}]: {outlets[name]!r} is not a top module of the branch; it has: {', '.join(tops)}"
            )
