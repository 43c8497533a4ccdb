"""The loop: what it changes, in which order, what it leaves alone, and where it stops."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastalter.errors import TrainingError
from fastalter.training import Trainer
from fastalter.training.losses import loss_terms, total_of
from fastalter.training.state import load_state
from tests.training.nets import Item, assert_same, items, loss, net, options, rows, trainer


def poisoned(at: int, value: float = float("nan")) -> list[Item]:
    batches = items(8)
    batches[at].x[0, 0, 0, 0] = value
    return batches


def state_dict(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_two_runs_are_one() -> None:
    first, second = net(), net()
    a = trainer(first).run()
    torch.manual_seed(99)
    b = trainer(second).run()
    assert_same(first.state_dict(), second.state_dict())
    assert [row["total"] for row in a.losses] == [row["total"] for row in b.losses]
    other = net()
    trainer(other, seed=5).run()
    assert not torch.equal(first.out.weight, other.out.weight), "dropout depends on the seed"


def test_one_step_by_hand() -> None:
    model, oracle = net(), net()
    batch = items()[0]
    model.drop.p = oracle.drop.p = 0.0
    trainer(model, steps=1, weight_decay=0.5, clip=None, lr=0.05).run()
    oracle.train()
    terms = loss(oracle, batch)
    (terms["loss_cls"] + terms["loss_reg"]).backward()  # type: ignore[no-untyped-call]
    for name, parameter in oracle.named_parameters():
        if parameter.grad is None:
            continue
        decay = 0.5 if parameter.ndim > 1 else 0.0
        # the first Adam step: both averages are the gradient, so the step is lr times its sign, but for eps
        moved = parameter * (1 - 0.05 * decay) - 0.05 * parameter.grad / (parameter.grad.abs() + 1e-8)
        assert torch.allclose(model.get_parameter(name), moved, rtol=1e-5, atol=1e-6), name
    assert torch.equal(model.norm.running_mean, oracle.norm.running_mean)  # type: ignore[arg-type]


def test_draws_depend_on_the_step_alone() -> None:
    seen: list[list[float]] = []

    def draw(step: int) -> Item:
        seen.append([random.random(), float(np.random.rand()), float(torch.rand(()))])
        return items()[step % 4]

    trainer(net(), batches=draw).run()
    trainer(net(), batches=draw).run()
    assert seen[:8] == seen[8:]
    assert len({tuple(draws) for draws in seen[:8]}) == 8


def test_batches_cycle_or_are_asked_for() -> None:
    asked: list[Any] = []

    def note(model: nn.Module, item: Item) -> Any:
        asked.append(item.tokens[0])
        return loss(model, item)

    trainer(net(), loss=note, batches=items(3), steps=5).run()
    assert asked == [f"sample{i}-0" for i in (0, 1, 2, 0, 1)]
    asked.clear()
    trainer(net(), loss=note, batches=lambda step: items()[3 - step], steps=4).run()
    assert asked == [f"sample{i}-0" for i in (3, 2, 1, 0)]


def test_hooks_run_in_order_after_the_optimizer(tmp_path: Path) -> None:
    model, calls = net(), []

    def mask() -> None:
        calls.append("mask")
        assert not torch.equal(model.out.weight[0], torch.zeros(4)), "the optimizer has stepped"
        with torch.no_grad():
            model.out.weight[0] = 0

    def check() -> None:
        calls.append("check")
        assert not model.out.weight[0].any(), "the first hook has run"

    trainer(model, tmp_path, after_step=[mask, check]).run()
    assert calls == ["mask", "check"] * 8
    assert not load_state(tmp_path / "last.pt").model["out.weight"][0].any(), "saved after the hooks"


def test_progress_is_told_every_step() -> None:
    told: list[tuple[str, int, int]] = []
    trainer(net(), progress=lambda *call: told.append(call), steps=3).run()
    assert told == [("train", done, 3) for done in range(4)]


def test_nan_stops_before_the_weights(tmp_path: Path) -> None:
    model, at = net(), []
    hooks = [lambda: at.append(state_dict(model))]
    with pytest.raises(TrainingError) as caught:
        trainer(model, tmp_path, batches=poisoned(5), after_step=hooks).run()
    message = str(caught.value)
    assert message.startswith("step 5, batch 5 (sample5-0, sample5-1, sample5-2): not finite: total (nan), ")
    assert "loss_cls (nan), loss_reg (nan)" in message
    assert message.endswith(f"the last good checkpoint is {tmp_path / 'last.pt'} with 4 steps")
    assert "\n" not in message
    assert len(at) == 5
    assert_same(state_dict(model), at[-1], "running statistics included")
    state = load_state(tmp_path / "last.pt")
    assert state.step == 4
    assert_same(state.model, at[3])
    assert all(value.isfinite().all() for value in state.model.values())
    assert len(rows(tmp_path)) == 5


def test_only_the_terms_that_are_not_finite_are_named() -> None:
    def infinite(model: nn.Module, item: Item) -> dict[str, Tensor]:
        return loss(model, item) | {"loss_box": model.out.bias.sum() / 0}  # type: ignore[operator,union-attr]

    with pytest.raises(
        TrainingError, match=r"step 0, batch 0 \(.*\): not finite: total \(-?inf\), loss_box \(-?inf\);"
    ):
        trainer(net(), loss=infinite).run()


def test_the_batch_is_named_by_its_index_where_it_has_no_tokens() -> None:
    batches = [(item.x, item.y) for item in poisoned(1)[:2]]

    def pair(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    with pytest.raises(
        TrainingError, match=r"step 1, batch 1: not finite: total \(nan\), loss \(nan\); .* no checkpoint"
    ):
        trainer(net(), loss=pair, batches=batches).run()


def test_a_gradient_that_is_not_finite_stops_too(tmp_path: Path) -> None:
    def steep(model: nn.Module, item: Item) -> dict[str, Tensor]:
        value = loss(model, item)
        if item.tokens[0] == "sample3-0":  # the square root of 0 is 0, its slope is infinite
            value["loss_root"] = (model.out.bias - model.out.bias.detach()).abs().sum().sqrt()  # type: ignore[operator,union-attr]
        return value

    model, at = net(), []
    with pytest.raises(
        TrainingError, match=r"step 3, batch 3 .*all losses are finite, but the gradient norm is (nan|inf)"
    ):
        trainer(model, tmp_path, loss=steep, after_step=[lambda: at.append(state_dict(model))]).run()
    assert_same(state_dict(model), at[-1])
    assert load_state(tmp_path / "last.pt").step == 2


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    model, calls = net(), []

    def spoil() -> None:
        calls.append(1)
        if len(calls) == 4:
            with torch.no_grad():
                model.norm.running_var[0] = float("inf")  # type: ignore[index]

    with pytest.raises(TrainingError, match=r"after step 3, norm.running_var is not finite; .*last\.pt with 2 steps"):
        trainer(model, tmp_path, after_step=[spoil]).run()
    assert load_state(tmp_path / "last.pt").step == 2


def test_infinities_that_were_there_before_are_allowed(tmp_path: Path) -> None:
    model = net()
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    assert trainer(model, tmp_path).run().steps == 8
    assert trainer(model, tmp_path).run(resume=True).steps == 8


@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_generators_and_modes_are_restored(fails: bool, tmp_path: Path) -> None:
    model = net().eval()
    model.drop.train()
    draws = []
    for train in (False, True):
        random.seed(4), np.random.seed(4), torch.manual_seed(4)
        if train and fails:
            with pytest.raises(TrainingError):
                trainer(model, tmp_path, batches=poisoned(2)).run()
        elif train:
            trainer(model, tmp_path).run()
        draws.append((random.random(), float(np.random.randn()), float(torch.rand(()))))
    assert draws[0] == draws[1]
    assert [module.training for module in (model, model.conv, model.norm, model.drop)] == [False, False, False, True]


def test_train_mode_in_the_run() -> None:
    modes: list[bool] = []

    def note(model: nn.Module, item: Item) -> Any:
        modes.append(model.training)
        return loss(model, item)

    trainer(net().eval(), loss=note, steps=2).run()
    assert modes == [True, True]


def test_an_error_of_the_loss_leaves_the_model_as_before_the_step() -> None:
    model, at = net(), []

    def raising(network: nn.Module, item: Item) -> Any:
        value = loss(network, item)
        if len(at) == 2:
            raise ValueError("no")
        return value

    with pytest.raises(ValueError, match="no"):
        trainer(model, loss=raising, after_step=[lambda: at.append(state_dict(model))]).run()
    assert_same(state_dict(model), at[-1])


def test_files_of_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    result = trainer(net(), folder, checkpoint_every=0).run()
    assert sorted(path.name for path in folder.iterdir()) == ["last.pt", "losses.csv", "tensorboard"]
    assert list((folder / "tensorboard").iterdir())
    assert result.folder == folder
    assert load_state(folder / "last.pt").step == 8
    table = rows(folder)
    assert list(table[0]) == ["step", "lr", "grad_norm", "total", "loss_cls", "loss_reg"]
    for row, wanted in zip(table, result.losses, strict=True):
        assert {name: float(value) for name, value in row.items()} == {
            k: v for k, v in wanted.items() if k != "seconds"
        }
        assert wanted["total"] == pytest.approx(wanted["loss_cls"] + wanted["loss_reg"])


def test_checkpoints_come_when_they_are_due(tmp_path: Path) -> None:
    seen: list[int | None] = []

    def look() -> None:
        seen.append(load_state(tmp_path / "last.pt").step if (tmp_path / "last.pt").exists() else None)

    trainer(net(), tmp_path, checkpoint_every=3, after_step=[look]).run()
    assert seen == [None, None, None, 3, 3, 3, 6, 6]


def test_a_term_that_comes_late_gets_its_column(tmp_path: Path) -> None:
    def late(model: nn.Module, item: Item) -> dict[str, Tensor]:
        terms = loss(model, item)
        return terms if item.tokens[0] == "sample0-0" else {**terms, "late_loss": terms["loss_reg"] * 2}

    trainer(net(), tmp_path, loss=late, steps=4).run()
    table = rows(tmp_path)
    assert [row["late_loss"] == "" for row in table] == [True, False, False, False]
    assert [row["step"] for row in table] == ["0", "1", "2", "3"]


def test_no_folder_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert trainer(net()).run().folder is None
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="file: cannot be made"):
        trainer(net(), tmp_path / "file").run()


def test_loss_terms_follow_the_rule_of_adapt() -> None:
    from fastalter.fusion.adapt import sum_losses

    x = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    for losses in (
        x.sum(),
        {"loss_a": x, "b_loss": [x.sum(), x.max()], "loss_constant": torch.ones(()), "accuracy": x.sum() * 100},
    ):
        assert total_of(loss_terms(losses)).item() == pytest.approx(sum_losses(losses).item())
    assert list(loss_terms({"loss_a": x, "loss_constant": torch.ones(()), "accuracy": x.sum()})) == ["loss_a"]
    for nothing in (torch.ones(()), {"accuracy": x.sum()}, {}, None):
        with pytest.raises(TrainingError, match="nothing differentiable"):
            loss_terms(nothing)


def test_importing_does_not_load_tensorboard() -> None:
    import subprocess
    import sys

    code = "import fastalter.training, sys; assert not [m for m in sys.modules if m.startswith('tensorboard')]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_trainer_runs_again_from_the_first_step() -> None:
    model, steps = net(), []
    run = Trainer(model, loss, items(), options(), after_step=[lambda: steps.append(1)])
    first, second = run.run(), run.run()
    assert len(steps) == 16
    assert [row["lr"] for row in first.losses] == [row["lr"] for row in second.losses]
    assert second.losses[0]["total"] != first.losses[0]["total"], "the weights are those of the first run"
