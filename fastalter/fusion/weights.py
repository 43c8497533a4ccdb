"""The parameters of a network: which branch each belongs to, and which of them may be pruned (the set P)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeGuard

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter

from fastalter.errors import ModelError
from fastalter.fusion.adapt import FUSION, FusionModel

Prunable = Callable[[str, nn.Parameter, nn.Module], bool]
"""prunable(name, parameter, owning module) -> may it be pruned?"""

ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Weight:
    """One parameter: its first name in the model, its branch, whether it is in P, whether it is learned.

    Geometry that a model stores as parameters (frustum, grid steps) is not: it is never counted, zeroed or trained.
    """

    name: str
    parameter: nn.Parameter
    branch: str
    prunable: bool
    learned: bool


def default_prunable(name: str, parameter: nn.Parameter, module: nn.Module) -> bool:
    """Weights of convolutions (sparse too), linear layers, attention projections, by the owning module's type."""
    last = name.rpartition(".")[2]
    if isinstance(module, nn.MultiheadAttention):
        return last in ATTENTION_WEIGHTS
    return last == "weight" and (isinstance(module, (_ConvNd, nn.Linear)) or is_sparse_conv(module))


def is_sparse_conv(module: nn.Module) -> bool:
    """True for spconv's convolutions, without importing spconv."""
    return any(cls.__name__ == "SparseConvolution" for cls in type(module).__mro__)


def is_plain_conv2d(module: object) -> TypeGuard[nn.Conv2d]:
    """A 2-d convolution of one group with explicit zero padding, and no subclass that may do more: what the ops are."""
    if type(module) is not nn.Conv2d:
        return False
    return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def find_weights(fusion: FusionModel, prunable: Prunable | None = None) -> list[Weight]:
    """Every parameter once, in model order.

    A parameter that two branches share counts as fusion; the model's notes say so.

    Raises:
        ModelError: parameters overlap in storage, a parameter is uninitialised, or nothing is prunable in a branch.
    """
    choose = prunable or default_prunable
    names: dict[int, list[tuple[str, nn.Module]]] = {}
    parameters: dict[int, nn.Parameter] = {}
    for path, module in fusion.model.named_modules(remove_duplicate=False):
        for last, parameter in module.named_parameters(recurse=False):
            if isinstance(parameter, UninitializedParameter):
                raise ModelError(f"{path}.{last} is not initialised yet; run one batch through the model first")
            names.setdefault(id(parameter), []).append((f"{path}.{last}" if path else last, module))
            parameters[id(parameter)] = parameter
    _refuse_overlap([(names[key][0][0], parameter) for key, parameter in parameters.items()])
    weights = []
    for key, parameter in parameters.items():
        name, module = names[key][0]
        floating = parameter.is_floating_point()
        weights.append(
            Weight(
                name=name,
                parameter=parameter,
                branch=branch_of(fusion, [n for n, _ in names[key]], note=True),
                prunable=floating and any(choose(n, parameter, m) for n, m in names[key]),
                learned=floating and (parameter.requires_grad or _is_layer(module)),
            )
        )
    for branch in fusion.branch_names:
        if not any(w.prunable for w in weights if w.branch == branch):
            raise ModelError(f"branch {branch!r} has no prunable weight; check branches= and prunable=")
    return weights


def branch_counts(fusion: FusionModel, weights: list[Weight]) -> dict[str, dict[str, int]]:
    """Learned parameters (geometry left out) and prunable weights of every branch."""
    return {
        branch: {
            "parameters": sum(w.parameter.numel() for w in weights if w.branch == branch and w.learned),
            "prunable": sum(w.parameter.numel() for w in weights if w.branch == branch and w.prunable),
        }
        for branch in fusion.branch_names
    }


def branch_of(fusion: FusionModel, names: list[str], *, note: bool = False) -> str:
    """The branch of something with these dotted names; fusion where they lie in several branches."""
    found = {_branch_of_name(fusion, name) for name in names}
    if len(found) == 1:
        return found.pop()
    remark = f"{names[0]} is shared by {', '.join(sorted(found))}: it counts as fusion"
    if note and remark not in fusion.notes:
        fusion.notes.append(remark)
    return FUSION


def _branch_of_name(fusion: FusionModel, name: str) -> str:
    for branch, paths in fusion.branches.items():
        if any(name.startswith(f"{path}.") for path in paths):
            return branch
    return FUSION


def _is_layer(module: nn.Module) -> bool:
    return (
        type(module).__module__.startswith("torch.nn.")
        or is_sparse_conv(module)
        or isinstance(module, (_ConvNd, nn.Linear))
    )


def _refuse_overlap(named: list[tuple[str, nn.Parameter]]) -> None:
    """Two parameters on one piece of memory would be counted and changed twice."""
    spans = []
    for name, parameter in named:
        if parameter.numel() and parameter.device.type != "meta":
            start = parameter.data_ptr()
            extent = (
                sum((size - 1) * stride for size, stride in zip(parameter.shape, parameter.stride(), strict=True)) + 1
            )
            spans.append((str(parameter.device), start, start + extent * parameter.element_size(), name))
    spans.sort()
    for (device, _, end, name), (device_next, start, _, name_next) in pairwise(spans):
        if device == device_next and start < end:
            raise ModelError(
                f"{name} and {name_next} overlap in storage; give each its own memory, or share one Parameter object"
            )
