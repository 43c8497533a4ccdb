"""From channel groups to a compaction plan: which positions of which tensors stay, which numbers change with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from fastalter.errors import MaskError, ModelError
from fastalter.structure.compaction.attributes import Value, widths_of
from fastalter.structure.compaction.cut import Cut
from fastalter.structure.compaction.layers import check_norm
from fastalter.structure.compaction.plan import CompactionPlan, named_tensors
from fastalter.structure.groups import Axis, ChannelGroups, stays


def revived(groups: ChannelGroups, kept: Tensor) -> Tensor:
    """bool [G]: `kept` and, of each axis or count that would be left with nothing, its first group."""
    kept = kept.clone()
    counted = [axis.groups for axis in groups.axes] + [count.groups for count in groups.counts]
    for members in counted:
        if len(members) and not bool(stays(members, kept).any()):
            kept[members.min()] = True
    return kept


class Planner:
    """Makes a `CompactionPlan` of groups and a network.

    wanted  bool [G]: the groups that the mask keeps
    kept    bool [G]: those that stay; no layer is left without a channel
    """

    def __init__(self, groups: ChannelGroups, kept: Tensor, model: nn.Module) -> None:
        self.groups = groups
        self.tensors = named_tensors(model)
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self._check_axes()
        self.wanted = kept
        self.kept = revived(groups, kept)
        self.positions: dict[bytes, Tensor] = {}

    def plan(self) -> CompactionPlan:
        cuts = self._with_all_names(
            {name: cut for name, axes in self.groups.axes_of.items() if (cut := self._cut(name, axes))}
        )
        after = {id(self.tensors[name]): cut.shape_after for name, cut in cuts.items()}
        attributes: dict[str, dict[str, tuple[Value, Value]]] = {}
        for path, module in self._unique_modules():
            changes = self._attributes(path, module, after)
            if changes:
                attributes[path] = changes
        return CompactionPlan(
            cuts, attributes, self._layer_norms(cuts), self._attentions(after), self._emptied(), folds=[]
        )

    def _check_axes(self) -> None:
        for axis in self.groups.axes:
            tensor = self.tensors.get(axis.tensor)
            if tensor is None:
                raise MaskError(f"{axis.tensor}: the groups reach this tensor and the model has none; use their model")
            if axis.axis >= tensor.dim() or tensor.shape[axis.axis] != len(axis.groups):
                found = f"{tuple(tensor.shape)} in the model and has {len(axis.groups)} positions on axis {axis.axis}"
                raise MaskError(f"{axis.tensor} is {found} in the groups; use their model")
        for count in self.groups.counts:
            if count.module not in self.modules:
                raise MaskError(f"{count.module}: the groups count its {count.name} and the model has no such module")

    def _cut(self, name: str, axes: list[Axis]) -> Cut | None:
        kept, zero = {}, {}
        for axis in axes:
            flags = stays(axis.groups, self.kept)
            if not bool(flags.all()):
                kept[axis.axis] = self._interned(flags)
            unwanted = flags & ~stays(axis.groups, self.wanted)
            if name not in self.groups.buffers and bool(unwanted.any()):
                zero[axis.axis] = unwanted.nonzero().flatten()
        return Cut(tuple(self.tensors[name].shape), kept, zero) if kept or zero else None

    def _interned(self, flags: Tensor) -> Tensor:
        """Positions of the flags; one tensor for all axes that keep the same."""
        return self.positions.setdefault(flags.numpy().tobytes(), flags.nonzero().flatten())

    def _with_all_names(self, cuts: Mapping[str, Cut]) -> dict[str, Cut]:
        """The cuts, and the same ones by the other names of shared tensors."""
        of_tensor: dict[int, Cut] = {}
        for name, cut in cuts.items():
            first = of_tensor.setdefault(id(self.tensors[name]), cut)
            if first.shape_after != cut.shape_after:
                raise MaskError(f"{name} is shared, and would shrink in two ways; the groups must join them")
        return {name: of_tensor[id(tensor)] for name, tensor in self.tensors.items() if id(tensor) in of_tensor}

    def _unique_modules(self) -> Iterator[tuple[str, nn.Module]]:
        seen: set[int] = set()
        for path, module in self.modules.items():
            if id(module) not in seen:
                seen.add(id(module))
                yield path, module

    def _attributes(
        self, path: str, module: nn.Module, after: Mapping[int, tuple[int, ...]]
    ) -> dict[str, tuple[Value, Value]]:
        values: dict[str, Value] = {
            count.name: int(stays(count.groups, self.kept).sum())
            for count in self.groups.counts
            if self.modules[count.module] is module
        }
        own = {**module._parameters, **module._buffers}
        shapes = {last: after.get(id(t), tuple(t.shape)) for last, t in own.items() if t is not None}
        if values or any(id(tensor) in after for tensor in own.values()):
            counts = {name: value for name, value in values.items() if isinstance(value, int)}
            values = {**widths_of(module, shapes, counts), **values}
        changes = {}
        for last, value in values.items():
            before = getattr(module, last, None)
            before = tuple(before) if isinstance(before, list | tuple) else before
            if type(before) is not type(value):
                raise MaskError(f"{path}.{last} is {before!r} and the groups count it; use the model they are of")
            if before != value:
                changes[last] = (before, value)
        return changes

    def _layer_norms(self, cuts: Mapping[str, Cut]) -> dict[str, int]:
        found = {}
        for path in self.groups.layer_norms:
            norm = self.modules.get(path)
            weight = f"{path}.weight".lstrip(".")
            if weight in self.tensors and weight not in cuts:
                continue
            try:
                check_norm(norm)
            except ModelError as error:
                raise ModelError(f"{path}: {error}") from error
            assert isinstance(norm, nn.LayerNorm)
            found[path] = int(getattr(norm, "count", norm.normalized_shape[-1]))
        return found

    def _attentions(self, after: Mapping[int, tuple[int, ...]]) -> list[str]:
        """Where torch's own forward runs, which knows one width; in-tree attention goes by its weights."""
        return [
            path
            for path, module in self._unique_modules()
            if isinstance(module, nn.MultiheadAttention)
            and type(module).forward is nn.MultiheadAttention.forward
            and any(id(tensor) in after for tensor in module.parameters())
        ]

    def _emptied(self) -> list[str]:
        return [
            entry.name
            for entry in self.groups.layout.entries
            if not bool(self.wanted[entry.offset : entry.offset + entry.size].any())
        ]
