"""Algorithm 1 of AlterMOMA: alternate modality masking, and the gradients that AlterEva scores from.

for m in branches:
    mask m;  gradients at theta_init on D               -> start[m]
    train the masked model on D_1 .. D_B  (SGD, eq. 16) -> theta_B
    gradients at theta_B on D (or D_B alone)            -> end[m]
    theta <- theta_init
gradients at theta_init on D, nothing masked            -> grad
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from fastalter.altermoma.arena import Arena
from fastalter.altermoma.batches import Batches
from fastalter.altermoma.clock import Clock
from fastalter.altermoma.passes import Gradients, Passes, Stage
from fastalter.altermoma.reactivation import Reactivation, sgd_step
from fastalter.errors import ScoringError

ReriData = Literal["paired", "paper"]
Progress = Callable[[str, int, int], None]
"""progress(stage, done, total)"""


@dataclass(frozen=True)
class AlternateMasking:
    """One run of Algorithm 1.

    branches      the sensors, masked in this order's reverse (LiDAR before camera, as the paper does)
    passes        forward and backward under modality masks, shared or direct
    parameters    what reactivation trains, by name
    reinitialise  theta <- theta_init, buffers included
    reuse_first   the first step starts at theta_init, where its gradient is known (docs/method.md, saving 4)
    """

    branches: list[str]
    passes: Passes
    parameters: dict[str, nn.Parameter]
    reinitialise: Callable[[], None]
    reactivation: Reactivation
    reri_data: ReriData = "paired"
    reuse_first: bool = True

    def run(self, arena: Arena, data: Batches, clock: Clock, progress: Progress) -> None:
        """Fill the arena's gradients: `grad`, and `start` and `end` of every stage."""
        if len(data) < self.reactivation.batches:
            raise ScoringError(
                f"reactivation takes {self.reactivation.batches} batches and there are {len(data)}; "
                f"pass more batches or Reactivation(batches={len(data)})"
            )
        for masked in self.branches:
            arena.open_stage(masked)
        with clock.stage("start"):
            first = self._start(arena, data, progress)
        for masked in reversed(self.branches):
            with clock.stage(f"reactivate, {masked} masked"):
                self._reactivate(masked, data, first.pop(masked, {}), progress)
            with clock.stage(f"end, {masked} masked"):
                self._end(masked, arena, data, progress)
            self.reinitialise()

    def _start(self, arena: Arena, data: Batches, progress: Progress) -> dict[str, Gradients]:
        """Gradients at theta_init; returns those of D_1 per stage, where they are wanted again."""
        first: dict[str, Gradients] = {}
        progress("start", 0, len(data))
        for index, batch in data:
            for stage, gradients in self.passes.at_theta_init(index, batch):
                self._accumulator(arena, stage).add(gradients)
                if index == 0 and stage is not None and self.reuse_first:
                    first[stage] = gradients
            progress("start", index + 1, len(data))
        self.reinitialise()  # batch norm's running statistics moved
        arena.grad.scale(1 / len(data))
        for accumulator in arena.start.values():
            accumulator.scale(1 / len(data))
        arena.check_finite()  # before reactivation spreads what is wrong
        return first

    def _reactivate(self, masked: str, data: Batches, first: Gradients, progress: Progress) -> None:
        stage, total = f"reactivate, {masked} masked", self.reactivation.batches
        progress(stage, 0, total)
        for index, batch in data.first(total):
            gradients = first if index == 0 and self.reuse_first else self.passes.masked(masked, index, batch)
            sgd_step(self.parameters, gradients, self.reactivation.lr)
            progress(stage, index + 1, total)

    def _end(self, masked: str, arena: Arena, data: Batches, progress: Progress) -> None:
        batches: Any = data if self.reri_data == "paired" else [data.last_of(self.reactivation.batches)]
        stage = f"end, {masked} masked"
        progress(stage, 0, len(batches))
        for done, (index, batch) in enumerate(batches, 1):
            arena.end[masked].add(self.passes.masked(masked, index, batch))
            progress(stage, done, len(batches))
        arena.end[masked].scale(1 / len(batches))

    @staticmethod
    def _accumulator(arena: Arena, stage: Stage) -> Any:
        return arena.grad if stage is None else arena.start[stage]
