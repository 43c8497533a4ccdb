"""What a training run can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fastalter.errors import TrainingError

Schedule = Literal["one-cycle", "cosine", "constant"]


@dataclass(frozen=True)
class TrainOptions:
    """Settings of a training run; all but `checkpoint_every` and `log_every` must stay the same over a resume.

    steps             optimizer steps of the whole run
    lr                peak learning rate
    weight_decay      decoupled (AdamW), on parameters of two or more dimensions; biases and norms have none
    betas             AdamW's averages; no schedule moves them
    schedule          one-cycle: cosine up from lr / 10, cosine down. cosine: linear up from lr / 10, cosine down.
                      constant: lr at every step
    warmup            fraction of the steps that rise, in [0, 1). 0.3 suits one-cycle; cosine is mostly run with 0.05 or
                      less; constant has none
    final_lr          learning rate of the last step as a fraction of lr, in [0, 1]; constant ignores it
    clip              largest norm of the whole gradient; None: never clipped
    checkpoint_every  steps between checkpoints; 0: only after the last step and upon an interrupt
    log_every         steps between TensorBoard points; losses.csv has every step
    seed              with the step's number, it fixes what dropout and the like draw in that step

    Raises:
        TrainingError: a value that no run can use; the message names the option.
    """

    steps: int
    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    schedule: Schedule = "one-cycle"
    warmup: float = 0.3
    final_lr: float = 1e-4
    clip: float | None = 35.0
    checkpoint_every: int = 100
    log_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        self._integer("steps", 1)
        self._integer("checkpoint_every", 0)
        self._integer("log_every", 1)
        self._integer("seed", 0)
        self._require("lr", _number(self.lr) and self.lr > 0, "a finite number above 0")
        self._require("weight_decay", _number(self.weight_decay) and self.weight_decay >= 0, "a finite number from 0")
        two = isinstance(self.betas, (tuple, list)) and len(self.betas) == 2
        self._require("betas", two and all(_number(b) and 0 <= b < 1 for b in self.betas), "two numbers in [0, 1)")
        self._require("schedule", self.schedule in get_args(Schedule), "one of " + ", ".join(get_args(Schedule)))
        self._require("warmup", _number(self.warmup) and 0 <= self.warmup < 1, "a fraction of the steps in [0, 1)")
        self._require("final_lr", _number(self.final_lr) and 0 <= self.final_lr <= 1, "a fraction of lr in [0, 1]")
        self._require("clip", self.clip is None or (_number(self.clip) and self.clip > 0), "None or a number above 0")
        object.__setattr__(self, "betas", tuple(self.betas))

    def _integer(self, name: str, least: int) -> None:
        value = getattr(self, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        self._require(name, whole and value >= least, f"a whole number from {least}")

    def _require(self, name: str, good: bool, wanted: str) -> None:
        if not good:
            raise TrainingError(f"{name}: got {getattr(self, name)!r}; give {wanted}")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
