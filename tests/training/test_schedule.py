"""Options, learning rates and weight decay against what their definitions say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from fastalter.errors import TrainingError
from fastalter.training import TrainOptions
from fastalter.training.schedule import make_optimizer, make_scheduler
from tests.training.nets import Net, net, trainer


def rates(**changes: Any) -> list[float]:
    """What the steps of a run were taken with."""
    return [row["lr"] for row in trainer(net(), **changes).run().losses]


def half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


@pytest.mark.parametrize(("steps", "warmup"), [(20, 0.3), (20, 0.05), (7, 0.31), (10, 0.1), (9, 0.0), (2, 0.9)])
@pytest.mark.parametrize("final", [1e-4, 0.0, 1.0])
def test_one_cycle(steps: int, warmup: float, final: float) -> None:
    peak, lr = max(0.0, warmup * steps - 1), 0.02
    wanted = [
        half_cosine(lr / 10, lr, step / peak)
        if step < peak
        else half_cosine(lr, lr * final, (step - peak) / (steps - 1 - peak))
        for step in range(steps)
    ]
    found = rates(steps=steps, warmup=warmup, lr=lr, final_lr=final, schedule="one-cycle")
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(("steps", "warmup"), [(20, 0.3), (20, 0.05), (7, 0.3), (9, 0.0), (2, 0.9)])
@pytest.mark.parametrize("final", [1e-4, 0.0])
def test_cosine(steps: int, warmup: float, final: float) -> None:
    rise, lr = min(round(warmup * steps), steps - 1), 0.02
    wanted = [
        lr * (0.1 + 0.9 * step / rise)
        if step < rise
        else half_cosine(lr, lr * final, (step - rise) / max(1, steps - 1 - rise))
        for step in range(steps)
    ]
    found = rates(steps=steps, warmup=warmup, lr=lr, final_lr=final, schedule="cosine")
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12 * lr)


def test_constant() -> None:
    assert rates(schedule="constant", steps=5, lr=0.02) == [0.02] * 5


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
def test_one_step_is_taken_at_lr(schedule: str) -> None:
    assert rates(schedule=schedule, steps=1, lr=0.02) == [0.02]


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
def test_schedule_leaves_the_betas_alone(schedule: Any) -> None:
    options = TrainOptions(10, betas=(0.7, 0.8), schedule=schedule)
    optimizer, _ = make_optimizer(net(), options)
    scheduler = make_scheduler(optimizer, options)
    for _ in range(9):
        optimizer.step()
        scheduler.step()
        assert all(group["betas"] == (0.7, 0.8) for group in optimizer.param_groups)


def test_biases_and_norms_have_no_decay() -> None:
    optimizer, names = make_optimizer(net(), TrainOptions(5, weight_decay=0.3))
    assert names == [["conv.weight", "out.weight"], ["conv.bias", "norm.weight", "norm.bias", "out.bias"]]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_frozen_parameters_stay() -> None:
    model = net()
    model.conv.weight.requires_grad_(False)
    trainer(model, weight_decay=0.5).run()
    assert torch.equal(model.conv.weight, net().conv.weight)
    assert torch.equal(model.frozen, torch.ones(3, 3))
    assert not torch.equal(model.out.weight, net().out.weight)


def test_nothing_to_train() -> None:
    with pytest.raises(TrainingError, match="Net: no parameter requires a gradient"):
        trainer(net().requires_grad_(False))
    with pytest.raises(TrainingError, match="batches: the sequence is empty"):
        trainer(net(), batches=[])


class Slope(nn.Module):
    """One weight that wants a gradient of (30, 40) times the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))


def slope(model: Slope, batch: float) -> torch.Tensor:
    return (model.weight * torch.tensor([30.0, 40.0])).sum() * batch


@pytest.mark.parametrize(("clip", "bound"), [(5.0, 5.0), (80.0, 50.0), (None, 50.0)])
def test_clipping_bounds_the_gradient(clip: float | None, bound: float) -> None:
    model, norms = Slope(), []
    hooks = [lambda: norms.append(float(model.weight.grad.norm()))]  # type: ignore[union-attr]
    result = trainer(model, loss=slope, batches=[1.0], clip=clip, steps=3, after_step=hooks).run()
    assert norms == pytest.approx([bound] * 3, rel=1e-5)
    assert [row["grad_norm"] for row in result.losses] == pytest.approx([50.0] * 3)
    assert model.weight.grad is None


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("steps", 0),
        ("steps", 2.5),
        ("steps", True),
        ("lr", 0.0),
        ("lr", math.nan),
        ("weight_decay", -1.0),
        ("betas", (0.9,)),
        ("betas", (0.9, 1.0)),
        ("betas", 0.9),
        ("schedule", "linear"),
        ("warmup", 1.0),
        ("warmup", -0.1),
        ("final_lr", 1.5),
        ("clip", 0.0),
        ("clip", "much"),
        ("checkpoint_every", -1),
        ("log_every", 0),
        ("seed", -1),
    ],
)
def test_options_are_checked(option: str, value: Any) -> None:
    with pytest.raises(TrainingError) as caught:
        TrainOptions(**{"steps": 5} | {option: value})
    message = str(caught.value)
    assert message.startswith(f"{option}: got {value!r}; give ")
    assert "\n" not in message


def test_net_has_what_the_tests_rest_on() -> None:
    kinds = {type(module) for module in Net().modules()}
    assert {nn.Dropout, nn.BatchNorm2d} <= kinds
