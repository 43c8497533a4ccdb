"""The arena: all prunable weights as one flat buffer in branch order, and gradient accumulators of the same shape.

Scores, thresholds and masks are a few sweeps over flat memory; a branch is a range; a weight is a view.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastalter.errors import ModelError, ScoringError
from fastalter.fusion.weights import Weight


@dataclass(frozen=True)
class Entry:
    """One weight's place in the arena."""

    name: str
    shape: tuple[int, ...]
    offset: int
    size: int
    branch: str


class Layout:
    """Which weight lies where: entries in branch order (sensors, then fusion), dense, without padding."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = list(entries)
        self.size = sum(entry.size for entry in self.entries)
        self.branches = list(dict.fromkeys(entry.branch for entry in self.entries))
        self._by_name = {entry.name: entry for entry in self.entries}

    @staticmethod
    def of(weights: Sequence[Weight], branches: Sequence[str]) -> Layout:
        """The layout of the prunable ones of these weights."""
        entries, offset = [], 0
        for branch in branches:
            for weight in weights:
                if weight.prunable and weight.branch == branch:
                    size = weight.parameter.numel()
                    entries.append(Entry(weight.name, tuple(weight.parameter.shape), offset, size, branch))
                    offset += size
        return Layout(entries)

    def __getitem__(self, name: str) -> Entry:
        if name not in self._by_name:
            raise KeyError(f"{name!r} is not a prunable weight; there are {len(self.entries)}, see layout.entries")
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def range(self, branch: str) -> slice:
        """Where a branch lies in the arena."""
        inside = [entry for entry in self.entries if entry.branch == branch]
        return slice(inside[0].offset, inside[-1].offset + inside[-1].size)

    def segments(self) -> Tensor:
        """Offsets [T + 1] of the weights, int64, the last one the arena's size."""
        return torch.tensor([entry.offset for entry in self.entries] + [self.size], dtype=torch.int64)

    def to_json(self) -> list[list[Any]]:
        """[[name, shape, branch], ...] in arena order; offsets follow."""
        return [[entry.name, list(entry.shape), entry.branch] for entry in self.entries]

    @staticmethod
    def from_json(rows: Sequence[Sequence[Any]]) -> Layout:
        """The inverse of `to_json`."""
        entries, offset = [], 0
        for name, shape, branch in rows:
            size = int(torch.Size(shape).numel())
            entries.append(Entry(str(name), tuple(int(n) for n in shape), offset, size, str(branch)))
            offset += size
        return Layout(entries)


class Accumulator:
    """A flat buffer over the arena, without one branch's range if `skip` names one, that sums gradients.

    A stage in which branch m is masked yields no gradient for m: its accumulators have no room for it.
    """

    def __init__(self, layout: Layout, like: Tensor, skip: str | None = None) -> None:
        self.layout = layout
        self.skip = skip
        hole = layout.range(skip) if skip else slice(0, 0)
        self._hole = hole
        self.flat = torch.zeros(layout.size - (hole.stop - hole.start), dtype=like.dtype, device=like.device)
        self._views = {e.name: self._view(e) for e in layout.entries if e.branch != skip}

    def add(self, gradients: dict[str, Tensor], at: Mapping[str, Tensor] | None = None) -> None:
        """Add gradients by weight name; names outside the arena or of the skipped branch are passed over.

        at  the values that the gradients were taken at, where they are not the model's own by now; weights do not mind
        """
        views, values = self._matching(gradients)
        if views:
            torch._foreach_add_(views, values)

    def add_squares(self, gradients: dict[str, Tensor]) -> None:
        """Add the squares of gradients, as `add` adds them."""
        views, values = self._matching(gradients)
        if views:
            torch._foreach_addcmul_(views, values, values)

    def _matching(self, gradients: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        names = [name for name in gradients if name in self._views]
        return [self._views[n] for n in names], [gradients[n].to(self.flat.dtype) for n in names]

    def scale(self, factor: float) -> None:
        """Sum -> mean."""
        if factor != 1.0:
            self.flat.mul_(factor)

    def branch(self, name: str) -> Tensor:
        """The branch's range, 1-D."""
        inside = self.layout.range(name)
        return self.flat[self._shift(inside.start) : self._shift(inside.stop - 1) + 1]

    def first_not_finite(self) -> str | None:
        """Name of the first weight with a NaN or infinite entry."""
        if bool(torch.isfinite(self.flat.sum())):
            return None  # one sweep, as nearly always; an overflowing sum of finite numbers goes on to the exact check
        return next((name for name, view in self._views.items() if not bool(torch.isfinite(view).all())), None)

    def _shift(self, offset: int) -> int:
        return offset if offset < self._hole.start else offset - (self._hole.stop - self._hole.start)

    def _view(self, entry: Entry) -> Tensor:
        start = self._shift(entry.offset)
        return self.flat[start : start + entry.size].view(entry.shape)


class Arena:
    """theta and the accumulators of Algorithm 1.

    theta           the weights at theta_init
    grad            dL/dtheta with nothing masked, mean over D                         (DeCI, eq. 6)
    start[m]        dL/dtheta with branch m masked, at theta_init, mean over D         (eq. 10, first term)
    end[m]          the same at the reactivated theta_B                                (eq. 10, second term)

    float64 where a weight is, else float32: weights of lower precision are cast up.
    """

    def __init__(self, weights: Sequence[Weight], branches: Sequence[str]) -> None:
        layout = Layout.of(weights, branches)
        parameters = {w.name: w.parameter for w in weights if w.prunable}
        devices = {str(p.device) for p in parameters.values()}
        if len(devices) > 1 or "meta" in devices:
            raise ModelError(
                f"prunable weights on {', '.join(sorted(devices))}; move the model onto one device with data first"
            )
        double = any(p.dtype == torch.float64 for p in parameters.values())
        first = next(iter(parameters.values()))
        theta = torch.empty(layout.size, dtype=torch.float64 if double else torch.float32, device=first.device)
        with torch.no_grad():
            for entry in layout.entries:
                theta[entry.offset : entry.offset + entry.size].view(entry.shape).copy_(parameters[entry.name])
        self._open(layout, theta)

    def _open(self, layout: Layout, theta: Tensor) -> None:
        self.layout, self.theta = layout, theta
        self.grad = self.accumulator()
        self.start: dict[str, Accumulator] = {}
        self.end: dict[str, Accumulator] = {}

    def accumulator(self, skip: str | None = None) -> Accumulator:
        """A buffer that sums gradients over this arena, without the branch `skip`."""
        return Accumulator(self.layout, self.theta, skip)

    def magnitudes(self) -> Tensor:
        """|theta| [N]."""
        return self.theta.abs()

    def open_stage(self, masked: str) -> None:
        """Room for the gradients of the stage in which `masked` is masked."""
        self.start[masked] = self.accumulator(skip=masked)
        self.end[masked] = self.accumulator(skip=masked)

    def stages_of(self, branch: str) -> list[str]:
        """The stages that a branch takes part in: those in which another branch is masked."""
        return [masked for masked in self.start if masked != branch]

    def check_finite(self) -> None:
        """Raises ScoringError naming the weight and the stage where a gradient is NaN or infinite."""
        for where, accumulator in self._accumulators():
            name = accumulator.first_not_finite()
            if name is not None:
                raise ScoringError(
                    f"{name}: its gradient {where} is not finite; after reactivation lower lr=, else check the batches"
                )

    def _accumulators(self) -> Iterable[tuple[str, Accumulator]]:
        yield "with nothing masked", self.grad
        for masked in self.start:
            yield f"with {masked} masked at theta_init", self.start[masked]
            yield f"with {masked} masked after reactivation", self.end[masked]
