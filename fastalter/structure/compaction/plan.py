"""A compaction plan: everything that makes the compacted network out of one built from the original definition.

It holds no weights and no code: names, positions and numbers. So it goes into a JSON file, and what is read from one is
checked against the model before anything of the model changes.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastalter.errors import MaskError, ModelError
from fastalter.masks.hold import Hold, holds_in
from fastalter.structure.compaction.attributes import Value
from fastalter.structure.compaction.cut import Cut, cut_all
from fastalter.structure.compaction.layers import CompactAttention, CountedLayerNorm, check_attention, check_norm
from fastalter.structure.groups import ChannelGroups

Changes = Mapping[str, Mapping[str, tuple[Value, Value]]]


@dataclass(frozen=True)
class CompactionPlan:
    """How a model of the original definition becomes the compacted one.

    tensors      name in the state dict -> its cut; tensors that stay whole are not here
    attributes   module's path -> attribute -> (value before, value after): channels, features, heads, groups
    layer_norms  path -> the channels that the norm goes on counting (see `layers.CountedLayerNorm`)
    attentions   paths of torch's attention modules that `layers.CompactAttention` stands in for
    emptied      sets of groups that the mask leaves nothing of: one group of each stays, its weights zero
    folds        (layer's path, batch norm's path): the norm goes into the layer before it (see `fold.fold_pair`)
    """

    tensors: dict[str, Cut]
    attributes: Changes = field(default_factory=dict)
    layer_norms: dict[str, int] = field(default_factory=dict)
    attentions: list[str] = field(default_factory=list)
    emptied: list[str] = field(default_factory=list)
    folds: list[tuple[str, str]] = field(default_factory=list)

    @staticmethod
    def of(groups: ChannelGroups, kept: Tensor, model: nn.Module) -> CompactionPlan:
        """The plan that removes the groups that are not kept.

        Args:
            kept: bool [G].
            model: the network that the groups are of; it stays as it is.

        Raises:
            MaskError: kept does not fit the groups, or the groups do not fit the model.
            ModelError: channels leave a norm or an attention that nothing can stand in for.
        """
        if kept.dtype != torch.bool or kept.shape != (groups.size,):
            found = f"{tuple(kept.shape)} {kept.dtype}"
            raise MaskError(f"kept is {found}, but must be bool ({groups.size},): one flag per channel group")
        from fastalter.structure.compaction.planner import Planner

        return Planner(groups, kept.cpu(), model).plan()

    def apply(self, model: nn.Module) -> nn.Module:
        """Make the compacted network of a model of the original definition, in place; returns it.

        Its weights are cut as well (and folded, where the plan folds norms), so a model that carries the original
        weights needs no loading. Parameters are new objects, without gradient, with the requires_grad they had.

        Raises:
            ModelError: the model does not fit the plan; it is then as it was.
        """
        self.check(model)
        small = self._cut(model)
        for module in model.modules():
            for own in cast("list[dict[str, Tensor | None]]", [module._parameters, module._buffers]):
                for last, tensor in own.items():
                    if tensor is not None and id(tensor) in small:
                        own[last] = small[id(tensor)]
        return self._finish(model)

    def compacted(self, model: nn.Module) -> nn.Module:
        """As `apply`, but the result is a new model and the one given stays as it is; nothing is copied to be cut.

        Raises:
            ModelError: the model does not fit the plan, or cannot be copied.
        """
        self.check(model)
        memo: dict[int, Any] = dict(self._cut(model))
        holds = holds_in(model)
        memo |= {id(hold): _released for hold in holds}
        try:
            small = copy.deepcopy(model, memo)
        except RuntimeError as error:  # torch copies no tensor that is the result of a computation
            raise ModelError(f"the model cannot be copied ({error}); drop what it keeps of a forward pass") from error
        _drop_released(small, holds)
        return self._finish(small)

    def then(self, later: CompactionPlan) -> CompactionPlan:
        """One plan for both: this one, and `later` for the network that it makes.

        Raises:
            ModelError: norms are folded already, or `later` is for another network.
        """
        if self.folds:
            raise ModelError("batch norms are folded already: compact before folding")
        tensors = dict(self.tensors)
        for name, cut in later.tensors.items():
            first = tensors.get(name, Cut(cut.shape, {}))
            if first.shape_after != cut.shape:
                raise ModelError(f"{name} is left with shape {first.shape_after} and cut as one of {cut.shape} next")
            tensors[name] = first.then(cut)
        return CompactionPlan(
            tensors,
            _both_changes(self.attributes, later.attributes),
            {**later.layer_norms, **self.layer_norms},  # the channels that the first network had
            list(dict.fromkeys([*self.attentions, *later.attentions])),
            list(dict.fromkeys([*self.emptied, *later.emptied])),
            list(later.folds),
        )

    def check(self, model: nn.Module) -> None:
        """Raises ModelError, naming the entry, if the model does not fit the plan. Changes nothing."""
        tensors, modules = named_tensors(model), dict(model.named_modules(remove_duplicate=False))
        for name, cut in self.tensors.items():
            if name not in tensors:
                raise ModelError(f"the plan cuts {name}, which the model does not have; {_ORIGINAL}")
            if tuple(tensors[name].shape) != cut.shape:
                shapes = f"{tuple(tensors[name].shape)} and the plan cuts {cut.shape}"
                raise ModelError(f"{name} has shape {shapes}; {_ORIGINAL}")
        for path, changes in self.attributes.items():
            for last, (before, _) in changes.items():
                _check_attribute(modules, path, last, before)
        stand_ins = [(check_norm, path) for path in self.layer_norms]
        for fits, path in [*stand_ins, *((check_attention, path) for path in self.attentions)]:
            try:
                fits(modules.get(path))
            except ModelError as error:
                raise ModelError(f"{path}: {error}") from error
        if self.folds:
            from fastalter.structure.compaction.fold import check_pair

            for layer, norm in self.folds:
                check_pair(modules, layer, norm)

    def _cut(self, model: nn.Module) -> dict[int, Tensor]:
        """id of a tensor of the model -> the small one that takes its place; a shared tensor is cut once."""
        tensors = named_tensors(model)
        unique = {id(tensors[name]): (tensors[name], cut) for name, cut in self.tensors.items()}
        small = cut_all(*map(list, zip(*unique.values(), strict=True))) if unique else []
        return {key: _like(tensor, big) for (key, (big, _)), tensor in zip(unique.items(), small, strict=True)}

    def _finish(self, model: nn.Module) -> nn.Module:
        """What is left to do once the tensors are cut."""
        modules = dict(model.named_modules(remove_duplicate=False))
        for path, changes in self.attributes.items():
            for last, (_, after) in changes.items():
                kind = type(getattr(modules[path], last))
                setattr(modules[path], last, kind(after))
        for path, count in self.layer_norms.items():
            CountedLayerNorm.stand_in(cast(nn.LayerNorm, modules[path]), count)
        for path in self.attentions:
            CompactAttention.stand_in(cast(nn.MultiheadAttention, modules[path]))
        for module in model.modules():
            if isinstance(module, nn.TransformerEncoder) and any(
                isinstance(m, CompactAttention) for m in module.modules()
            ):
                module.use_nested_tensor = False  # nested tensors are for torch's fast path alone
        if self.folds:
            from fastalter.structure.compaction.fold import fold_pair

            for layer, norm in self.folds:
                fold_pair(model, layer, norm)
        return model

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data; see `plan_file`."""
        from fastalter.structure.compaction.plan_file import plan_to_json

        return plan_to_json(self)

    @staticmethod
    def from_json(document: object) -> CompactionPlan:
        """The inverse of `to_json`. Raises MaskError naming the key and place of what is wrong."""
        from fastalter.structure.compaction.plan_file import plan_from_json

        return plan_from_json(document)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as a JSON file, whole or not at all."""
        from fastalter.structure.compaction.plan_file import write_plan

        write_plan(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> CompactionPlan:
        """Read a plan from its JSON file, or from the metadata of a compacted safetensors file.

        Raises:
            MaskError: no such file, or not a whole plan; naming the file, the key and the place.
        """
        from fastalter.structure.compaction.plan_file import read_plan

        return read_plan(path)


_ORIGINAL = "build the model from the definition that the plan was made for"


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by each of its names."""
    named = dict(model.named_parameters(remove_duplicate=False))
    return {**named, **dict(model.named_buffers(remove_duplicate=False))}


def _like(small: Tensor, big: Tensor) -> Tensor:
    """A parameter where `big` is one, with what was set on it (such as marks for an optimizer) and no gradient."""
    if not isinstance(big, nn.Parameter):
        return small
    parameter = nn.Parameter(small, requires_grad=big.requires_grad)
    parameter.__dict__.update(big.__dict__)
    return parameter


def _check_attribute(modules: Mapping[str, nn.Module], path: str, last: str, before: Value) -> None:
    found = getattr(modules[path], last, None) if path in modules and not last.startswith("_") else None
    value = tuple(found) if isinstance(found, list | tuple) else found
    if isinstance(found, bool) or type(value) is not type(before) or value != before:
        place = f"{path}.{last}".lstrip(".")
        raise ModelError(f"the plan changes {place} from {before} and the model has {found!r} there; {_ORIGINAL}")


def _both_changes(first: Changes, later: Changes) -> Changes:
    both = {path: dict(changes) for path, changes in first.items()}
    for path, changes in later.items():
        for last, (before, after) in changes.items():
            known = both.setdefault(path, {}).get(last, (before, before))
            if known[1] != before:
                raise ModelError(f"{path}.{last} is left at {known[1]} and changed from {before} next")
            both[path][last] = known[0], after
    return both


def _released(module: nn.Module, incompatible_keys: Any) -> None:
    """In the place of a pruned weight's hold (`masks.hold`): in the compacted network there is nothing to hold."""


def _drop_released(small: nn.Module, holds: list[Hold]) -> None:
    if holds:
        for module in small.modules():
            hooks = module._load_state_dict_post_hooks
            for key in [key for key, hook in hooks.items() if hook is _released]:
                del hooks[key]
