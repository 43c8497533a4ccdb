"""Channel groups inside an artifact: names and sizes in its JSON, all numbers in a few tensors.

The tensors (prefix "groups/"): axes, gates, counts are int32, the groups of every position, one entry after the other
in the JSON's order; flops and group_flops are float64. So the JSON grows with the number of tensors only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastalter.altermoma.arena import Layout
from fastalter.errors import MaskError
from fastalter.masks.mask import GROUPS
from fastalter.structure.groups import FIXED, Axis, ChannelGroups, Count, Gate, Kept

KEY = GROUPS
"""In the artifact's JSON; its tensors' names begin with it and a slash."""


def pack(groups: ChannelGroups) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, document) that `unpack` makes the groups from again; the layout is the artifact's own."""
    names = list(groups.shapes)
    place = {name: i for i, name in enumerate(names)}
    buffers = set(groups.buffers)
    document = {
        "tensors": [[name, list(groups.shapes[name]), name in buffers] for name in names],
        "axes": [[place[a.tensor], a.axis] for a in groups.axes],
        "gates": [[g.layer, place[g.weight], None if g.bias is None else place[g.bias], g.axis] for g in groups.gates],
        "counts": [[c.module, c.name, c.groups.numel()] for c in groups.counts],
        "layer_norms": groups.layer_norms,
        "kept": [[k.layer, k.channels, k.reason] for k in groups.kept],
        "flops": list(groups.flops),
    }
    tensors = {
        "axes": _joined([a.groups for a in groups.axes]),
        "gates": _joined([g.groups for g in groups.gates]),
        "counts": _joined([c.groups for c in groups.counts]),
        "flops": torch.tensor(list(groups.flops.values()), dtype=torch.float64),
        "group_flops": groups.group_flops,
    }
    return {f"{KEY}/{name}": tensor for name, tensor in tensors.items()}, {KEY: document}


def unpack(path: object, tensors: Mapping[str, Tensor], document: Any, layout: Layout) -> ChannelGroups:
    """The groups that `pack` wrote into the artifact at `path`; `document` is what its JSON has under KEY.

    Raises:
        MaskError: something is missing, or numbers do not fit the names; names the file.
    """
    try:
        groups = _unpack({name.removeprefix(f"{KEY}/"): tensor for name, tensor in tensors.items()}, document, layout)
        _check(groups)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise MaskError(f"{path}: its channel groups are damaged ({found}); make it again") from error
    return groups


def _unpack(tensors: Mapping[str, Tensor], document: Any, layout: Layout) -> ChannelGroups:
    shapes = {str(name): tuple(int(n) for n in shape) for name, shape, _ in document["tensors"]}
    names = list(shapes)
    gates = [
        (str(layer), names[weight], None if bias is None else names[bias], int(axis))
        for layer, weight, bias, axis in document["gates"]
    ]
    axes = [(names[tensor], int(axis)) for tensor, axis in document["axes"]]
    along = _split(tensors["axes"], [shapes[name][axis] for name, axis in axes])
    at_gates = _split(tensors["gates"], [shapes[weight][axis] for _, weight, _, axis in gates])
    counted = _split(tensors["counts"], [int(size) for _, _, size in document["counts"]])
    return ChannelGroups(
        layout=layout,
        axes=[Axis(*axis, numbers) for axis, numbers in zip(axes, along, strict=True)],
        gates=[Gate(*gate, numbers) for gate, numbers in zip(gates, at_gates, strict=True)],
        counts=[Count(str(m), str(n), numbers) for (m, n, _), numbers in zip(document["counts"], counted, strict=True)],
        layer_norms=[str(path) for path in document["layer_norms"]],
        kept=[Kept(str(layer), int(channels), str(reason)) for layer, channels, reason in document["kept"]],
        shapes=shapes,
        buffers=[str(name) for name, _, buffer in document["tensors"] if buffer],
        flops=dict(zip(map(str, document["flops"]), tensors["flops"].tolist(), strict=True)),
        group_flops=tensors["group_flops"].double(),
    )


def _check(groups: ChannelGroups) -> None:
    parts: list[Axis | Gate | Count] = [*groups.axes, *groups.gates, *groups.counts]
    for numbers in (part.groups for part in parts if part.groups.numel()):
        if not FIXED <= int(numbers.min()) <= int(numbers.max()) < groups.size:
            raise ValueError(f"a group's number is not in {FIXED}..{groups.size - 1}")
    if groups.group_flops.shape not in ((groups.size,), (0,)):
        raise ValueError(f"group_flops has {groups.group_flops.numel()} entries for {groups.size} groups")


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.empty(0, dtype=torch.int32), *(part.to(torch.int32) for part in parts)])


def _split(numbers: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    if numbers.dim() != 1 or numbers.dtype != torch.int32 or sum(sizes) != numbers.numel():
        raise ValueError(f"{numbers.numel()} group numbers of {numbers.dtype} for {sum(sizes)} positions")
    return torch.split(numbers.long(), list(sizes))
