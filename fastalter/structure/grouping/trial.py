"""Trial compactions: what a trace cannot see (a number in the code, a width read off another tensor), a run does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastalter.fusion.tree import tensors
from fastalter.masks import masked
from fastalter.structure.compaction.plan import CompactionPlan
from fastalter.structure.groups import ChannelGroups
from fastalter.structure.mask import ChannelMask

TOLERANCE = {False: 1e-3, True: 1e-9}
"""Of an output's largest value, in float64 the smaller one: a hundred times what rounding does."""
AGREEING = 0.5
"""Of an output's entries, at least: where a network picks proposals, rounding may tip a few.
A wrong channel does not stop at half."""

Run = Callable[[nn.Module], Any]


def failing_sets(model: nn.Module, groups: ChannelGroups, run: Run) -> dict[str, str]:
    """Sets of groups that cannot leave this network, and what went wrong; empty for nearly every network.

    About half of the groups of every set leave at once; the compacted network has to run, and to return what the masked
    one returns. Where it does not, each set is tried alone, and the rest together again.

    Args:
        run: calls the model on a batch and returns what it returns. The model is in eval mode.
    """
    if not groups.size or _failure(model, groups, run, range(len(groups.layout.entries))) is None:
        return {}
    alone = {i: _failure(model, groups, run, [i]) for i in range(len(groups.layout.entries))}
    failed = {groups.layout.entries[i].name: why for i, why in alone.items() if why is not None}
    rest = [i for i, why in alone.items() if why is None]
    together = _failure(model, groups, run, rest) if rest else None
    if together is not None:
        failed |= {groups.layout.entries[i].name: f"together with other sets: {together}" for i in rest}
    return failed


def _failure(model: nn.Module, groups: ChannelGroups, run: Run, sets: Sequence[int]) -> str | None:
    kept = _half(groups, sets)
    if bool(kept.all()):
        return None
    try:
        small = CompactionPlan.of(groups, kept, model).compacted(model)
        found = [t.detach() for t in tensors(run(small))]
    except Exception as error:  # whatever a user's forward raises when a width changed
        return f"the compacted network failed ({type(error).__name__}: {str(error).splitlines()[0]})"
    with masked(model, ChannelMask(kept, groups, ratio=0.5).weights()):
        expected = [t.detach() for t in tensors(run(model))]
    return None if _close(found, expected) else "the compacted network returned something else than the masked one"


def _half(groups: ChannelGroups, sets: Sequence[int]) -> Tensor:
    """bool [G]: every other group of these sets leaves, from the second on; at least one stays."""
    kept = torch.ones(groups.size, dtype=torch.bool)
    for i in sets:
        entry = groups.layout.entries[i]
        kept[entry.offset + 1 : entry.offset + entry.size : 2] = False
    return kept


def _close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    if [t.shape for t in found] != [t.shape for t in expected]:
        return False
    return all(_same(a, b) for a, b in zip(found, expected, strict=True))


def _same(found: Tensor, expected: Tensor) -> bool:
    if not expected.is_floating_point() or not expected.numel():
        return True
    tolerance = TOLERANCE[expected.dtype == torch.float64]
    close = (found - expected).abs() <= tolerance * expected.abs().max()
    return float(close.double().mean()) >= AGREEING
