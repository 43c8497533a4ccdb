"""The trials' criteria against loops in plain torch."""

from __future__ import annotations

import copy

import pytest
import torch

from fastalter.training import TrainOptions
from fastalter.training.schedule import make_optimizer
from recipes.experiment import trials
from recipes.experiment.trials import alternating_fisher, reactivated_fisher
from tests.altermoma.oracle import gradients, mode
from tests.criteria.cases import Case, assert_close, highest
from tests.criteria.test_against_oracles import fisher

LR = 0.05


def _reactivated(case, net, gone, alive):
    """theta_B: a step of SGD per batch; what is masked or no longer alive does not move."""
    end = copy.deepcopy(net)
    for batch in case.batches:
        step = gradients(end, case.loss, [batch], gone, "train")
        with torch.no_grad():
            for name, parameter in end.named_parameters():
                parameter -= LR * step[name] * alive.get(name, 1) * (name not in gone)
    return end


def _reri(case, net, alive, masked, squares):
    """theta^2 sum_b (g_b - g_b at theta_B)^2, or abs(theta sum_b (...)), with a branch masked; over its sum."""
    gone = [name for name, _ in net.named_parameters() if name.startswith(f"backbones.{masked}.")]
    end = _reactivated(case, net, gone, alive)
    found = dict.fromkeys(case.prunable(net), 0.0)
    for batch in case.batches:
        before, after = (gradients(at, case.loss, [batch], gone, "train") for at in (net, end))
        for name, parameter in case.prunable(net).items():
            change = parameter.detach() * (before[name] - after[name]) * (name not in gone)
            found[name] = found[name] + (change**2 if squares else change)
    total = sum(float(f.abs().sum()) for f in found.values())
    return {name: f.abs() / total for name, f in found.items()}


@pytest.mark.parametrize("squares", [True, False])
@pytest.mark.parametrize("rounds", [1, 2])
def test_against_a_loop(monkeypatch, rounds, squares):
    monkeypatch.setattr(trials, "ROUNDS", rounds)
    monkeypatch.setattr(trials.HeldTraining, "run", lambda *arguments: None)
    case = Case("small")
    settings = {"share": 1.0, "lr": LR, "squares": squares}
    scores = case.score(reactivated_fisher, settings=settings, ratio=0.7)
    net = mode(copy.deepcopy(case.net), "train")
    alive = {name: torch.ones_like(p, dtype=torch.bool) for name, p in case.prunable(net).items()}
    for done in range(1, rounds + 1):
        camera, lidar = (_reri(case, net, alive, masked, squares) for masked in ("camera", "lidar"))
        expected = {name: (camera[name] + lidar[name]) / 2 for name in camera}
        alive = highest(expected, alive, round(scores.flat.numel() * 0.3 ** (done / rounds)))
        with torch.no_grad():
            for name, parameter in case.prunable(net).items():
                parameter.mul_(alive[name])
    scores.flat.clamp_(min=0)  # what went in the first round is below zero
    assert_close(scores, expected)


def test_reactivation_leaves_no_trace_in_the_rounds():
    case = Case("small")
    ours = case.score(reactivated_fisher, settings={"share": 0.0, "lr": LR}, ratio=0.7)
    plain = case.score("modalfisher", settings={"share": 0.0}, ratio=0.7)
    assert torch.equal(ours.mask(0.7).bits, plain.mask(0.7).bits)
    assert_close(ours, {name: plain[name] for name in plain})


def test_the_steps_between_the_rounds_take_the_masks_in_turn(monkeypatch):
    monkeypatch.setattr(trials, "ROUNDS", 2)
    case = Case("small")
    scores = case.score(alternating_fisher, settings={"share": 0.5}, ratio=0.7)
    net = mode(copy.deepcopy(case.net), "train")
    alive = {name: torch.ones_like(p, dtype=torch.bool) for name, p in case.prunable(net).items()}
    for done in (1, 2):
        now, camera, lidar = (fisher(case, net, alive, masked) for masked in (None, "camera", "lidar"))
        expected = {name: 0.5 * now[name] + 0.25 * (camera[name] + lidar[name]) for name in now}
        alive = highest(expected, alive, round(scores.flat.numel() * 0.3 ** (done / 2)))
        if done == 1:
            _train_in_turn(case, net, alive)
    scores.flat.clamp_(min=0)
    assert_close(scores, {name: value * (value > 0) for name, value in expected.items()})


def _train_in_turn(case, net, alive):
    """Steps with nothing, the camera and the LiDAR masked, in turn; a branch that is masked is not stepped."""
    for name, parameter in case.prunable(net).items():
        parameter.data.mul_(alive[name])
    optimizer, _ = make_optimizer(net, TrainOptions(steps=trials.STEPS, lr=trials.LR, schedule="constant"))
    for step in range(trials.STEPS):
        masked = (None, "camera", "lidar")[step % 3]
        gone = [name for name, _ in net.named_parameters() if masked and name.startswith(f"backbones.{masked}.")]
        found = gradients(net, case.loss, [case.batches[step % len(case.batches)]], gone, "train")
        for name, parameter in net.named_parameters():
            parameter.grad = None if name in gone else found[name] * alive.get(name, 1)
        optimizer.step()
