"""The optimizer, and the learning rate of every step."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
)

from fastalter.errors import TrainingError
from fastalter.training.options import TrainOptions

START = 10.0
"""A rise starts at lr / START."""


def make_optimizer(model: nn.Module, options: TrainOptions) -> tuple[AdamW, list[list[str]]]:
    """AdamW over what requires a gradient, and the parameter names of its two groups: with and without decay.

    Raises:
        TrainingError: nothing requires a gradient.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise TrainingError(f"{type(model).__name__}: no parameter requires a gradient; unfreeze what is to be trained")
    groups = [[item for item in named if item[1].ndim > 1], [item for item in named if item[1].ndim <= 1]]
    settings = [
        {"params": [parameter for _, parameter in group], "weight_decay": decay}
        for group, decay in zip(groups, (options.weight_decay, 0.0), strict=True)
    ]
    return AdamW(settings, lr=options.lr, betas=options.betas), [[name for name, _ in group] for group in groups]


def make_scheduler(optimizer: Optimizer, options: TrainOptions) -> LRScheduler:
    """The schedule of `options.steps` steps; to be stepped between steps, so steps - 1 times.

    One-cycle is at its peak at step max(0, warmup * steps - 1), which may lie between two steps; cosine at step
    round(warmup * steps). Both reach final_lr * lr at the last step. A run of one step takes it at lr.
    """
    if options.schedule == "constant" or options.steps == 1:
        return ConstantLR(optimizer, factor=1.0, total_iters=1)
    return _one_cycle(optimizer, options) if options.schedule == "one-cycle" else _cosine(optimizer, options)


def _one_cycle(optimizer: Optimizer, options: TrainOptions) -> LRScheduler:
    # A rise of exactly one step would make torch divide by a phase of no length.
    rise = options.warmup if options.warmup * options.steps > 1 + 1e-9 else (1 - 1e-12) / options.steps
    return OneCycleLR(
        optimizer,
        options.lr,
        total_steps=options.steps,
        pct_start=rise,
        cycle_momentum=False,
        div_factor=START,
        final_div_factor=1 / (START * options.final_lr) if options.final_lr else math.inf,
    )


def _cosine(optimizer: Optimizer, options: TrainOptions) -> LRScheduler:
    rise = min(round(options.warmup * options.steps), options.steps - 1)
    fall = max(1, options.steps - 1 - rise)
    cosine = CosineAnnealingLR(optimizer, fall, eta_min=options.lr * options.final_lr)
    if not rise:
        return cosine
    linear = LinearLR(optimizer, start_factor=1 / START, total_iters=rise)
    return SequentialLR(optimizer, [linear, cosine], milestones=[rise])
