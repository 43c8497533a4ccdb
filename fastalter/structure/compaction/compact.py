"""A physically smaller network of a network and a channel mask, and the optimizer that goes on training it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from fastalter.errors import MaskError, ModelError, TrainingError
from fastalter.fusion.adapt import FusionModel
from fastalter.masks.places import COMPILED
from fastalter.structure.compaction.cut import Cut, cut_all
from fastalter.structure.compaction.plan import CompactionPlan, named_tensors
from fastalter.structure.groups import ChannelGroups

Network = TypeVar("Network", bound=nn.Module)


class GroupMask(Protocol):
    """What compaction takes of a channel mask: the groups, and bool [G], which of them stay."""

    @property
    def groups(self) -> ChannelGroups: ...

    @property
    def flat(self) -> Tensor: ...


@overload
def compact_model(model: Network, mask: GroupMask, *, optimizer: Optimizer | None = None) -> Network: ...


@overload
def compact_model(model: FusionModel, mask: GroupMask, *, optimizer: Optimizer | None = None) -> nn.Module: ...


def compact_model(model: nn.Module | FusionModel, mask: GroupMask, *, optimizer: Optimizer | None = None) -> nn.Module:
    """A new, smaller network without the channels that the mask drops; in eval mode it computes what the masked does.

    The model stays as it is. The result is of the same class, on the same device, with the same dtypes, modes,
    requires_grad and memory formats; shared parameters stay shared. Its parameters have no gradient and no hooks of
    their own; hooks on modules are copied, but for those that hold a pruned model's zeros. What torch.compile or a
    parallel wrapper put around the model stays behind: wrap the result anew.

    A layer that the mask leaves no channel keeps one, its weights zero: a network needs one, and computes the same.

    Args:
        mask: of channel groups (granularity="channel").
        optimizer: of this model. It trains the compacted one from now on: its parameters are exchanged and its state
            is cut as they were, so schedules and scalers that hold it go on. Parameters of other models stay in it.

    Raises:
        MaskError: a mask of single weights, or of another model.
        ModelError: channels leave a layer that nothing can stand in for, or the model cannot be copied.
        TrainingError: optimizer state that is not shaped like its parameter. Nothing has changed then.
    """
    network = unwrapped(model)
    plan = plan_of(network, mask)
    small = plan.compacted(network)
    if optimizer is not None:
        move_optimizer(optimizer, network, small, plan)
    return small


def plan_of(model: nn.Module, mask: GroupMask) -> CompactionPlan:
    """The plan of a channel mask. Raises MaskError for a mask of single weights, or of another model."""
    groups = getattr(mask, "groups", None)
    if not isinstance(groups, ChannelGroups):
        raise MaskError(
            "this mask is of single weights: compaction removes channels; score with granularity='channel', or keep "
            "the zeros with prune_model"
        )
    return CompactionPlan.of(groups, mask.flat, model)


def unwrapped(model: nn.Module | FusionModel) -> nn.Module:
    """The network itself, inside torch.compile's or a parallel wrapper."""
    network = model.model if isinstance(model, FusionModel) else model
    while True:
        if isinstance(network, DataParallel | DistributedDataParallel):
            network = network.module
        elif COMPILED in network._modules:
            inner = network._modules[COMPILED]
            assert inner is not None
            network = inner
        else:
            return network


def move_optimizer(optimizer: Optimizer, model: nn.Module, small: nn.Module, plan: CompactionPlan) -> None:
    """Let an optimizer of `model` train `small`, which `plan` made of it: same groups, settings and steps, state cut.

    State of a parameter's shape, or reduced over some of its axes to length 1, is cut as the parameter is; single
    numbers stay.

    Raises:
        TrainingError: state of another shape. The optimizer is then as it was.
    """
    new, cuts = _counterparts(model, small, plan)
    state = {
        id(parameter): _state(optimizer.state[parameter], cuts.get(id(parameter)))
        for parameter in _parameters(optimizer)
        if id(parameter) in new and parameter in optimizer.state
    }
    for group in optimizer.param_groups:
        for i, parameter in enumerate(group["params"]):
            if id(parameter) not in new:
                continue
            group["params"][i] = new[id(parameter)]
            if id(parameter) in state:
                del optimizer.state[parameter]
                optimizer.state[new[id(parameter)]] = state[id(parameter)]


def _parameters(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _counterparts(
    model: nn.Module, small: nn.Module, plan: CompactionPlan
) -> tuple[dict[int, nn.Parameter], dict[int, Cut]]:
    """id of a parameter of the model -> the small one's, and how it was cut."""
    theirs = dict(small.named_parameters(remove_duplicate=False))
    ours = dict(model.named_parameters(remove_duplicate=False))
    if theirs.keys() != ours.keys():
        raise ModelError("the compacted model has other parameters than the model; move the optimizer before folding")
    cuts = {id(tensor): plan.tensors[name] for name, tensor in named_tensors(model).items() if name in plan.tensors}
    return {id(parameter): theirs[name] for name, parameter in ours.items()}, cuts


@torch.no_grad()
def _state(state: dict[str, Any], cut: Cut | None) -> dict[str, Any]:
    if cut is None:
        return dict(state)
    moved, tensors = dict(state), {}
    for name, value in state.items():
        if not isinstance(value, Tensor) or (value.numel() == 1 and value.dim() != len(cut.shape)):
            continue
        along = cut.of_shape(value.shape)
        if along is None:
            shapes = f"{tuple(value.shape)} for a parameter of {cut.shape}"
            raise TrainingError(f"the optimizer keeps {name} of shape {shapes}: make a new one for the compacted model")
        tensors[name] = (value, along)
    small = cut_all([value for value, _ in tensors.values()], [along for _, along in tensors.values()])
    moved.update(zip(tensors, small, strict=True))
    return moved
