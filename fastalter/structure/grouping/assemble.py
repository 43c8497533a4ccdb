"""From what a trace says to channel groups: number the classes, and sort everything by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fastalter.altermoma.arena import Entry, Layout
from fastalter.fusion.adapt import FusionModel
from fastalter.fusion.weights import branch_of, default_prunable
from fastalter.structure.grouping.labels import NOTHING
from fastalter.structure.grouping.trace import Exit, Trace
from fastalter.structure.groups import FIXED, Axis, ChannelGroups, Count, Gate, Kept


def assemble(trace: Trace, fusion: FusionModel) -> ChannelGroups:
    """The groups of a settled trace."""
    numbering = _Numbering(trace, fusion)
    layout, number = numbering.layout, numbering.of
    axes = [Axis(name, axis, number(ids)) for (name, axis), ids in trace.axes.items()]
    axes = [axis for axis in axes if bool((axis.groups != FIXED).any())]
    gates = _gates(trace, numbering)
    used = {axis.tensor for axis in axes} | {g.weight for g in gates} | {g.bias for g in gates if g.bias}
    buffers = {name for name, _ in trace.model.named_buffers()}
    counts = {(module, name): number(labels) for module, name, labels in trace.counts}
    norms = dict.fromkeys(path for path, channels in trace.layer_norms if bool((number(channels) != FIXED).any()))
    return ChannelGroups(
        layout=layout,
        axes=axes,
        gates=gates,
        counts=[Count(m, n, groups) for (m, n), groups in counts.items() if bool((groups != FIXED).any())],
        layer_norms=list(norms),
        kept=[*_kept(trace, numbering), *_not_run(trace)],
        shapes={name: tuple(trace.tensors[name].shape) for name in sorted(used)},
        buffers=sorted(used & buffers),
        flops=dict(trace.flops),
        group_flops=_group_flops(trace, numbering),
    )


class _Numbering:
    """Class -> group: classes that the same layers make form a set; sets lie in branch order."""

    def __init__(self, trace: Trace, fusion: FusionModel) -> None:
        self._trace = trace
        roots = trace.classes.roots()
        self.reasons: dict[int, str] = {}
        for labels, reason in trace.pins:
            for root in np.unique(roots[labels.numpy()]).tolist():
                self.reasons.setdefault(root, reason)
        members: dict[int, dict[str, None]] = {}
        for key, exit in trace.exits.items():
            for root in roots[exit.ids.numpy()].tolist():
                members.setdefault(root, {})[key] = None
        self.contracted = set(np.unique(roots[_joined(trace.contracted).numpy()]).tolist())
        self.layout = self._lay_out(members, fusion)

    def _lay_out(self, members: dict[int, dict[str, None]], fusion: FusionModel) -> Layout:
        sets: dict[tuple[str, ...], list[int]] = {}
        for root, keys in members.items():
            if root not in self.reasons:
                sets.setdefault(tuple(keys), []).append(root)
        self._numbers = np.full(self._trace.classes.count, FIXED, dtype=np.int64)
        entries: list[Entry] = []
        names: set[str] = set()
        offset = 0
        for branch in fusion.branch_names:
            for made_by, roots in sets.items():
                exits = [self._trace.exits[key] for key in made_by]
                if _branch(fusion, exits) != branch:
                    continue
                heads = any(exit.heads for exit in exits) or roots[0] in self.contracted
                name = _unused(exits[0].layer + (".heads" if heads else ""), names)
                self._numbers[roots] = np.arange(offset, offset + len(roots))
                entries.append(Entry(name, (len(roots),), offset, len(roots), branch))
                offset += len(roots)
        return Layout(entries)

    def of(self, labels: Tensor) -> Tensor:
        """int64, shaped like the labels: their groups."""
        return torch.from_numpy(self._numbers)[self._trace.classes.of(labels).long()]

    def is_contracted(self, labels: Tensor) -> Tensor:
        """bool: labels of attention heads found by their products."""
        known = torch.tensor(sorted(self.contracted), dtype=torch.int32)
        return torch.isin(self._trace.classes.of(labels), known)


def pin_sets(trace: Trace, fusion: FusionModel, reasons: Mapping[str, str]) -> None:
    """Let sets of groups stay, by name, each for its reason."""
    numbering = _Numbering(trace, fusion)
    numbers = numbering.of(torch.arange(trace.classes.count, dtype=torch.int32))
    for name, reason in reasons.items():
        entry = numbering.layout[name]
        inside = (numbers >= entry.offset) & (numbers < entry.offset + entry.size)
        trace.pins.append((inside.nonzero().flatten().to(torch.int32), reason))


def _joined(several: Iterable[Tensor]) -> Tensor:
    return torch.cat([torch.empty(0, dtype=torch.int32), *several])


def _branch(fusion: FusionModel, exits: list[Exit]) -> str:
    return branch_of(fusion, [f"{exit.layer}." for exit in exits])


def _unused(name: str, names: set[str]) -> str:
    found, i = name, 2
    while found in names:
        found, i = f"{name}#{i}", i + 1
    names.add(found)
    return found


def _gates(trace: Trace, numbering: _Numbering) -> list[Gate]:
    """A channel leaves its layer behind the norms that stand there, if nothing else sees it before them."""
    bare = _joined(trace.bare)
    sources = _joined(norm.sources for norm in trace.norms.values())
    gates = []
    for norm in trace.norms.values():
        behind = (norm.sources != NOTHING) & ~torch.isin(norm.sources, bare)
        gates.append(_gate(numbering, norm.layer, norm.weight, norm.bias, 0, norm.sources, behind))
    for exit in trace.exits.values():
        normed = torch.isin(exit.ids, sources) & ~torch.isin(exit.ids, bare)
        own = ~normed if exit.heads else ~normed & ~numbering.is_contracted(exit.ids)
        gates.append(_gate(numbering, exit.layer, exit.weight, exit.bias, exit.axis, exit.ids, own))
    for reads in trace.reads.values():
        heads = numbering.is_contracted(reads.ids)
        gates.append(_gate(numbering, reads.layer, reads.weight, None, reads.axis, reads.ids, heads))
    return [gate for gate in gates if bool((gate.groups != FIXED).any())]


def _gate(
    numbering: _Numbering, layer: str, weight: str, bias: str | None, axis: int, ids: Tensor, where: Tensor
) -> Gate:
    return Gate(layer, weight, bias, axis, torch.where(where, numbering.of(ids), FIXED))


def _kept(trace: Trace, numbering: _Numbering) -> list[Kept]:
    found: dict[tuple[str, str], int] = {}
    made = [(exit.layer, exit.ids) for exit in trace.exits.values()]
    passed = [(name.rpartition(".")[0], ids) for name, ids in trace.passes.items()]
    for layer, ids in made + passed:
        for root, group in zip(trace.classes.of(ids).tolist(), numbering.of(ids).tolist(), strict=True):
            if group == FIXED:
                place = (layer, numbering.reasons.get(root, "no layer makes what passes it"))
                found[place] = found.get(place, 0) + 1
    return [Kept(layer, channels, reason) for (layer, reason), channels in found.items()]


def _not_run(trace: Trace) -> list[Kept]:
    """Layers with channels that the pass did not reach."""
    known = {exit.weight for exit in trace.exits.values()} | {name for name, _ in trace.axes}
    kept = []
    for path, module in trace.model.named_modules():
        weight = module._parameters.get("weight")
        name = f"{path}.weight" if path else "weight"
        if weight is not None and name not in known and default_prunable(name, weight, module):
            kept.append(Kept(path, _made_channels(module, weight), "it did not run, or not by its own forward"))
    return kept


def _made_channels(module: nn.Module, weight: Tensor) -> int:
    found = getattr(module, "out_channels", None) or getattr(module, "out_features", None) or weight.shape[0]
    return int(found)


def _group_flops(trace: Trace, numbering: _Numbering) -> Tensor:
    total = torch.zeros(numbering.layout.size, dtype=torch.float64)
    for labels, each in trace.class_flops:
        groups = numbering.of(labels)
        groups = groups[groups != FIXED]
        total.index_add_(0, groups, torch.full(groups.shape, each, dtype=torch.float64))
    return total
