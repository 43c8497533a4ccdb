"""What a forward pass assumes of its channels, judged when the pass is over and it is known which of them are one.

Each condition either unites channels until it holds whatever leaves, or pins those that could break it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from fastalter.structure.grouping.labels import NOTHING, Classes, common_shape, strip

Pinned = tuple[Tensor, str]
"""Labels that have to stay, and why."""


class Condition(Protocol):
    """Something that has to be true of the channels that are left."""

    def settle(self, classes: Classes) -> list[Pinned]:
        """Unite what has to go together; return what has to stay. Called again until nothing changes."""


@dataclass(frozen=True)
class Divided:
    """An axis of channels was divided into several: what is left has to be a box of that table again.

    So the table may differ along one of its axes alone. Where it does not, channels are united along all but the
    longest axis. With `inner` the parts, its first axis, keep their number.
    """

    table: Tensor
    where: str
    inner: bool = False

    def settle(self, classes: Classes) -> list[Pinned]:
        """See `Condition`."""
        differing = [dim for dim in range(self.table.dim()) if classes.varies(self.table, dim)]
        longest = max(differing, key=lambda dim: (self.table.shape[dim], dim), default=0)
        rows = self.table.movedim(self.table.dim() - 1 if self.inner else longest, 0).flatten(1)
        if len(differing) > 1 or self.inner:
            classes.unite(rows.amax(1, keepdim=True).expand_as(rows), rows)
        mixed = (rows == NOTHING).any(1, keepdim=True) & (rows != NOTHING)
        why = f"it is divided together with data that has no channels, in {self.where}"
        return [(rows[mixed], why)] if bool(mixed.any()) else []


@dataclass(frozen=True)
class Numbered:
    """Positions of an axis [size] are named by number: channels that differ along it have to keep their places."""

    rows: Tensor
    why: str
    where: str

    def settle(self, classes: Classes) -> list[Pinned]:
        """See `Condition`."""
        return [(self.rows, f"{self.why}, in {self.where}")] if classes.varies(self.rows, 0) else []


@dataclass(frozen=True)
class Tie:
    """Channels `met` meet an argument's `labels` element by element (as many dimensions; size 1 where repeated).

    If the argument has numbers of its own along an axis where the channels differ, and no channels, it would not shrink
    with them.
    """

    met: Tensor
    labels: Tensor
    where: str

    def settle(self, classes: Classes) -> list[Pinned]:
        """See `Condition`."""
        axes = [d for d in range(self.met.dim()) if self.labels.shape[d] > 1 and classes.varies(self.met, d)]
        if not axes:
            return []
        short = strip(self.labels)
        short = short.expand([self.labels.shape[d] if d in axes else n for d, n in enumerate(short.shape)])
        both = common_shape(self.met, short)
        met, short = self.met.expand(both), short.expand(both)
        tied = met[(short == NOTHING) & (met != NOTHING)]
        return [(tied, f"it meets data that has no channels, in {self.where}")] if len(tied) else []


@dataclass(frozen=True)
class Size:
    """An attribute of a module is the size of an axis [size]; where channels differ along it, it counts them."""

    module: nn.Module
    name: str
    rows: Tensor

    def settle(self, classes: Classes) -> list[Pinned]:
        """See `Condition`; nothing stays for it."""
        return []
