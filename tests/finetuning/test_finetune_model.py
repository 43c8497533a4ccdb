"""Training with a mask held: zeros that stay, gradients of the sparse network, runs that resume bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastalter import Mask, prune_model
from fastalter.errors import MaskError, TrainingError
from fastalter.finetuning import finetune_model
from fastalter.training import Trainer, TrainResult
from fastalter.training.state import load_state
from tests.masks.nets import mask_of
from tests.training.nets import Item, Net, assert_same, items, loss, net, options, rows

NAMES = ("conv.weight", "out.weight")
CHANGES = {"weight_decay": 0.3, "clip": 0.05}
"""Decay pulls on zeros, and a low limit makes every step depend on the whole gradient's norm."""


@pytest.fixture
def mask() -> Mask:
    return mask_of(net(), NAMES, ratio=0.6)


def run(model: nn.Module, mask: Mask | None, folder: Path | None = None, **changes: Any) -> TrainResult:
    own = {name: changes.pop(name) for name in ("resume", "facts", "progress") if name in changes}
    batches = changes.pop("batches", items())
    settings = options(**{**CHANGES, **changes})
    return finetune_model(model, batches, mask, options=settings, folder=folder, loss=loss, **own)


def alive(model: nn.Module, mask: Mask) -> int:
    """Weights that should be zero and are not."""
    return sum(int((model.get_parameter(name)[~mask[name]] != 0).sum()) for name in mask)


def test_pruned_weights_are_zero_after_every_step(mask: Mask) -> None:
    model, counts = net(), []
    assert alive(model, mask) > 0
    run(model, mask, progress=lambda *told: counts.append(alive(model, mask)))
    assert counts == [0] * 9
    kept = [model.get_parameter(name)[mask[name]] - net().get_parameter(name)[mask[name]] for name in mask]
    assert all(bool(change.any()) for change in kept), "the others are trained"


def test_it_is_the_training_of_the_sparse_network(mask: Mask) -> None:
    """Against the trainer on a net whose gradients and weights are multiplied by the mask at every turn."""
    model, oracle = net(), net()
    result = run(model, mask)

    def multiply() -> None:
        with torch.no_grad():
            for name in mask:
                oracle.get_parameter(name).mul_(mask[name])

    multiply()
    for name in mask:
        oracle.get_parameter(name).register_hook(lambda grad, keep=mask[name]: grad * keep)
    expected = Trainer(oracle, loss, items(), options(**CHANGES), after_step=[multiply]).run()
    assert_same(dict(model.state_dict()), dict(oracle.state_dict()))
    assert [row["grad_norm"] for row in result.losses] == [row["grad_norm"] for row in expected.losses]


def test_gradients_are_masked_before_they_are_clipped(mask: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, seen, model = torch.nn.utils.clip_grad_norm_, [], net()

    def spy(parameters: Any, limit: float) -> Any:
        grads = {name: model.get_parameter(name).grad for name in mask}
        assert all(grad is not None for grad in grads.values())
        seen.append(sum(int((grad[~mask[name]] != 0).sum()) for name, grad in grads.items()))  # type: ignore[index]
        return clip(parameters, limit)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    run(model, mask)
    assert seen == [0] * 8


def stopping(at: int) -> Any:
    def batch(step: int) -> Item:
        if step == at:
            raise KeyboardInterrupt
        return items()[step % 4]

    return batch


def test_resumed_is_uninterrupted(mask: Mask, tmp_path: Path) -> None:
    whole, resumed = net(), net()
    run(whole, mask, tmp_path / "a", batches=stopping(-1))
    with pytest.raises(KeyboardInterrupt):
        run(net(), mask, tmp_path / "b", batches=stopping(5))
    assert load_state(tmp_path / "b" / "last.pt").step == 5
    run(resumed, mask, tmp_path / "b", batches=stopping(-1), resume=True)
    assert_same(dict(whole.state_dict()), dict(resumed.state_dict()))
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert alive(resumed, mask) == 0


def test_a_resume_with_another_mask_or_other_facts_is_refused(mask: Mask, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(net(), mask, tmp_path, batches=stopping(5), facts={"data": "mine"})
    model, other = net(), mask_of(net(), NAMES, ratio=0.6, seed=1)
    for given, facts, what in (
        (other, {"data": "mine"}, "mask was '[0-9a-f]{64}', now it is '[0-9a-f]{64}'"),
        (None, {"data": "mine"}, "mask was '[0-9a-f]{64}', now it is None"),
        (mask, {"data": "yours"}, "data was 'mine', now it is 'yours'; resume with the same data"),
    ):
        with pytest.raises(TrainingError, match=rf"finetuning\.json: {what}"):
            run(model, given, tmp_path, facts=facts, resume=True)
    assert_same(dict(model.state_dict()), dict(net().state_dict()))
    assert json.loads((tmp_path / "finetuning.json").read_text())["data"] == "mine"
    assert run(model, mask, tmp_path, facts={"data": "mine"}, resume=True).steps == 8


def test_a_folder_in_use_is_left_alone(mask: Mask, tmp_path: Path) -> None:
    run(net(), mask, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(TrainingError, match=r"last\.pt: an earlier run is here"):
        run(net(), None, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    (tmp_path / "finetuning.json").write_text("{")
    with pytest.raises(TrainingError, match=r"finetuning\.json: not readable"):
        run(net(), mask, tmp_path, resume=True)


def test_a_mask_of_another_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    wider = nn.Sequential(nn.Conv2d(2, 8, 3))
    model = net()
    with pytest.raises(MaskError, match=r"0\.weight"):
        run(model, mask_of(wider, ["0.weight"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert_same(dict(model.state_dict()), dict(net().state_dict()))


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_held_afterwards(mask: Mask, fails: bool) -> None:
    model = net()
    if fails:
        with pytest.raises(KeyboardInterrupt):
            run(model, mask, batches=stopping(3))
    else:
        run(model, mask)
    assert alive(model, mask) == 0
    model.get_parameter("out.weight").data.fill_(1.0)
    finetune_model(model, items(), options=options(), loss=loss)
    assert alive(model, mask) > 0


def test_a_model_that_is_held_already_needs_no_mask(mask: Mask) -> None:
    held, given = net(), net()
    pruned = prune_model(held, mask)
    run(held, None)
    run(given, mask)
    assert pruned.held
    assert_same(dict(held.state_dict()), dict(given.state_dict()))


class OwnLoss(Net):
    def loss(self, item: Item) -> Any:
        return loss(self, item)


def test_a_model_may_bring_its_loss(mask: Mask) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = OwnLoss()
    other = net()
    finetune_model(model, items(), mask, options=options())
    finetune_model(other, items(), mask, options=options(), loss=loss)
    assert_same(dict(model.state_dict()), dict(other.state_dict()))
