"""Which channel groups stay: one global threshold, as many as a budget of channels, parameters or FLOPs allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fastalter.altermoma.arena import Entry
from fastalter.errors import MaskError
from fastalter.masks.mask import Mask, unpack
from fastalter.masks.select import floor_count, keep_count, select
from fastalter.structure.groups import FIXED, ChannelGroups
from fastalter.structure.mask import ChannelMask

Budget = Literal["channels", "parameters", "flops"]
"""What a ratio is a ratio of."""
MULTIPLES = (8, 16)


def select_channels(
    score: Tensor,
    groups: ChannelGroups,
    ratio: float,
    *,
    budget: Budget = "channels",
    min_keep: float | None = None,
    round_to: int | None = None,
    metadata: dict[str, Any] | None = None,
) -> ChannelMask:
    """Keep the highest-scored groups: the largest number of them whose cost is at most (1 - ratio) of all.

    Args:
        score: [G], higher means more worth keeping; ties go to the lowest index.
        budget: "channels": exactly round((1 - ratio) * G) groups stay. "parameters", "flops": what the compacted
            network has of them, see `Cost`.
        min_keep: the least share (a float in (0, 1), rounded up) or count (an int) that every set keeps, its own
            highest scores. One group of every set stays in any case: an emptied layer is no network.
        round_to: 8 or 16: every set keeps a multiple of so many channels, filled up by its next highest scores; a set
            that is smaller, or has no more, stays whole. Attention heads are exempt. What was filled up counts.

    Returns:
        The mask; its metadata say budget and min_keep, the sets that were "raised" to their floor, the ratios that were
        "reached" by every budget, and how many groups round_to "filled".

    Raises:
        MaskError: the ratio is not in [0, 1), the scores hold NaN, the groups know no FLOPs, or the floors and
            multiples need more than the budget allows; says the highest ratio that they can have.
    """
    keep_count(1, ratio)  # refuses a ratio outside [0, 1)
    _check(budget, round_to)
    choice = _Choice(score.cpu(), groups, 1 if min_keep is None else min_keep, round_to)
    cost = Cost(groups)
    allowed = cost.allowed(budget, ratio)
    least = choice.of(choice.least)
    if cost.of(least, budget) > allowed:
        highest = math.floor(1e4 * cost.ratio(least, budget)) / 1e4
        needs = f"one channel of each of the {len(groups.layout.entries)} sets" if min_keep is None else f"{min_keep=}"
        rounding = f" and round_to={round_to}" if round_to else ""
        raise MaskError(
            f"{budget}: {needs}{rounding} need more than a ratio of {ratio:g} leaves; "
            f"prune at most a ratio of {highest:g}, or lower them"
        )
    count = _largest(choice.least, groups.size, lambda k: cost.of(choice.of(k), budget) <= allowed)
    flat = choice.of(count)
    facts = {
        **(metadata or {}),
        "granularity": "channel",
        "budget": budget,
        "min_keep": min_keep,
        "round_to": round_to,
        "raised": choice.raised(count),
        "filled": int(flat.sum()) - count,
        "reached": {name: cost.ratio(flat, name) for name in get_args(Budget) if cost.whole[name]},
    }
    return ChannelMask(flat, groups, ratio=ratio, threshold=float(score.cpu()[flat].min()), metadata=facts)


class Cost:
    """What a network of these groups costs after compaction.

    channels    groups
    parameters  entries of the parameters that groups reach; the few that none reaches are no part of it
    flops       groups.flops * entries of every weight, + group_flops of every group

    whole  of each, with every group kept
    """

    def __init__(self, groups: ChannelGroups) -> None:
        self._groups = groups
        self._buffers = set(groups.buffers)
        kept = torch.ones(groups.size, dtype=torch.bool)
        self.whole: dict[str, float] = {name: self.of(kept, name) for name in get_args(Budget)}

    def of(self, kept: Tensor, budget: str) -> float:
        """The cost of what stays; kept: bool [G]."""
        if budget == "channels":
            return float(kept.sum())
        sizes = {name: math.prod(shape) for name, shape in self._groups.compacted_shapes(kept).items()}
        if budget == "parameters":
            return float(sum(size for name, size in sizes.items() if name not in self._buffers))
        shapes = self._groups.shapes
        entries = {name: sizes.get(name, math.prod(shapes[name])) for name in self._groups.flops if name in shapes}
        of_groups = self._groups.group_flops
        own = float(of_groups[kept].sum()) if of_groups.numel() else 0.0
        return sum(self._groups.flops[name] * size for name, size in entries.items()) + own

    def allowed(self, budget: str, ratio: float) -> float:
        """The most that may stay."""
        if budget == "channels":
            return keep_count(self._groups.size, ratio)
        if not self.whole[budget]:
            raise MaskError(f"{budget}: these channel groups know none; find the groups again, or take another budget")
        return (1 - ratio) * self.whole[budget] * (1 + 1e-12)  # so that rounding does not refuse an exact fit

    def ratio(self, kept: Tensor, budget: str) -> float:
        """The share that goes."""
        return 1 - self.of(kept, budget) / self.whole[budget]


class _Choice:
    """The groups that stay, given how many are chosen by score. More chosen is more kept, group by group.

    least  how many the floors need
    """

    def __init__(self, score: Tensor, groups: ChannelGroups, min_keep: float, round_to: int | None) -> None:
        self._score = score
        self._layout = groups.layout
        self._min_keep = min_keep
        self._rounded = [] if round_to is None else _rounded_sets(score, groups, round_to)
        self.least = sum(floor_count(entry.size, min_keep) for entry in groups.layout.entries)

    def of(self, count: int) -> Tensor:
        """bool [G]: the `count` highest scores under the floors, and what fills the sets up."""
        flat = unpack(self._selected(count).bits, 0, (self._layout.size,))
        for rounded in self._rounded:
            inside = flat[rounded.place]
            inside[rounded.order[: rounded.up(int(inside.sum()))]] = True
        return flat

    def raised(self, count: int) -> list[str]:
        """The sets that `count` highest scores alone would leave below their floor."""
        return list(self._selected(count).metadata["raised"])

    def _selected(self, count: int) -> Mask:
        return select(self._score, self._layout, count, ratio=0.0, min_keep=self._min_keep)


@dataclass(frozen=True)
class _Rounded:
    """A set whose channels come in multiples.

    place    where its groups are in the arena
    order    its groups by score, highest first
    allowed  int64, ascending: how many groups may stay; the last is all of them
    """

    place: slice
    order: Tensor
    allowed: Tensor

    def up(self, count: int) -> int:
        """The next number of groups that may stay."""
        return int(self.allowed[self.allowed >= count][0])


def _rounded_sets(score: Tensor, groups: ChannelGroups, round_to: int) -> list[_Rounded]:
    channels = _channels(groups)
    found = []
    for entry in groups.layout.entries:
        if not _is_heads(entry):
            place = slice(entry.offset, entry.offset + entry.size)
            order = score[place].argsort(descending=True, stable=True)
            whole = channels[place][order].cumsum(0) % round_to == 0
            whole[-1] = True
            found.append(_Rounded(place, order, whole.nonzero().flatten() + 1))
    return found


def _channels(groups: ChannelGroups) -> Tensor:
    """int64 [G]: how many channels of one layer a group holds, at the layer where they are most."""
    most = torch.zeros(groups.size, dtype=torch.int64)
    for gate in groups.gates:
        most = torch.maximum(most, torch.bincount(gate.groups[gate.groups != FIXED], minlength=groups.size))
    return most


def _is_heads(entry: Entry) -> bool:
    return entry.name.partition("#")[0].endswith(".heads")


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest k in low..high that fits, where `low` does and what fits is all below some k."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _check(budget: str, round_to: int | None) -> None:
    if budget not in get_args(Budget):
        raise MaskError(f"budget is {budget!r}; it takes {', '.join(map(repr, get_args(Budget)))}")
    if round_to is not None and round_to not in MULTIPLES:
        raise MaskError(f"round_to is {round_to!r}; it takes {' or '.join(map(str, MULTIPLES))}")
