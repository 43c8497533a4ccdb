"""After the pass: unite and pin channels until every condition holds, whatever leaves."""

from __future__ import annotations

import torch
from torch import Tensor

from fastalter.structure.grouping.conditions import Size
from fastalter.structure.grouping.labels import NOTHING
from fastalter.structure.grouping.trace import Trace


def settle(trace: Trace) -> None:
    """Bring a trace's classes, pins and counts to their final state."""
    _until_stable(trace)
    place_elementwise(trace)
    _until_stable(trace)
    trace.pins += [pinned for condition in trace.conditions for pinned in condition.settle(trace.classes)]
    _count_sizes(trace)
    _one_meaning_per_attribute(trace)


def _until_stable(trace: Trace) -> None:
    while True:
        before = trace.classes.roots()
        for condition in trace.conditions:
            condition.settle(trace.classes)
        after = trace.classes.roots()
        if len(before) == len(after) and bool((before == after).all()):
            return


def place_elementwise(trace: Trace) -> None:
    """A parameter used as data has its channels along the one axis whose positions hold one class each."""
    made = _made(trace)
    for name, ids in trace.elementwise.items():
        classes = trace.classes.of(ids)
        live = torch.where(torch.isin(classes, made), classes, NOTHING)
        if not bool((live != NOTHING).any()):
            continue
        for axis in range(live.dim()):
            rows = live.movedim(axis, 0).reshape(live.shape[axis], -1)
            highest = rows.amax(1, keepdim=True)
            if bool(((rows == highest) | (rows == NOTHING)).all()):
                trace.classes.unite(trace.axis(name, axis), highest.flatten())
                break
        else:
            trace.pins.append((torch.unique(live[live != NOTHING]), f"the parameter {name} mixes them"))


def _made(trace: Trace) -> Tensor:
    """The classes that a layer makes."""
    found = [trace.classes.of(exit.ids) for exit in trace.exits.values()]
    return torch.unique(torch.cat(found)) if found else torch.empty(0, dtype=torch.int32)


def _count_sizes(trace: Trace) -> None:
    for condition in trace.conditions:
        if isinstance(condition, Size) and trace.classes.varies(condition.rows, 0):
            trace.count(condition.module, condition.name, condition.rows)


def _one_meaning_per_attribute(trace: Trace) -> None:
    """An attribute that would count two kinds of channels keeps its value; if the code goes by it, the trial sees."""
    known: dict[tuple[str, str], list[Tensor]] = {}
    for module, name, labels in trace.counts:
        known.setdefault((module, name), []).append(trace.classes.of(labels))
    trace.counts = [
        (module, name, labels)
        for module, name, labels in trace.counts
        if all(torch.equal(known[module, name][0], other) for other in known[module, name])
    ]
