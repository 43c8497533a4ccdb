"""A stopped and resumed run is the run that was never stopped; files that cannot be resumed are refused."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from fastalter.errors import TrainingError
from fastalter.training.state import load_state
from tests.training.nets import Item, assert_same, items, loss, net, rows, trainer


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Python's own handler for an interrupt: a run in the background (nohup, a shell's &) starts with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def state_of(folder: Path) -> dict[str, Any]:
    state = vars(load_state(folder / "last.pt"))
    state["history"] = [{k: v for k, v in row.items() if k != "seconds"} for row in state["history"]]
    return state


def noisy(step: int) -> Item:
    """A batch with augmentation from every global generator."""
    item = items()[step % 4]
    scale = 1 + 0.1 * (random.random() + float(np.random.rand()) + float(torch.rand(())))
    return Item(item.x * scale, item.y, item.tokens)


def interrupted(folder: Path, at: int, batches: Any, schedule: str, how: str = "loss") -> None:
    def stop(step: int) -> Item:
        if step == at and how == "batch":
            raise KeyboardInterrupt
        return batches(step) if callable(batches) else batches[step % len(batches)]

    calls = []

    def stopping(model: nn.Module, item: Item) -> Any:
        value = loss(model, item)  # has moved the running statistics already
        calls.append(item)
        if len(calls) == at + 1 and how == "loss":
            raise KeyboardInterrupt
        return value

    def hook() -> None:
        if len(calls) == at and how == "signal":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer(net(), folder, loss=stopping, batches=stop, schedule=schedule, after_step=[hook]).run()


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
@pytest.mark.parametrize("how", ["loss", "batch", "signal"])
@pytest.mark.parametrize("batches", [items(), noisy], ids=["sequence", "function"])
def test_resumed_is_uninterrupted(tmp_path: Path, schedule: str, how: str, batches: Any) -> None:
    whole, first, other = net(), tmp_path / "whole", tmp_path / "parts"
    straight = trainer(whole, first, batches=batches, schedule=schedule).run()
    interrupted(other, 5, batches, schedule, how)
    assert load_state(other / "last.pt").step == 5, "the last completed step, which was no checkpoint"
    resumed = net()
    with torch.no_grad():
        resumed.out.weight.zero_()  # all comes from the file
    result = trainer(resumed, other, batches=batches, schedule=schedule).run(resume=True)
    assert_same(whole.state_dict(), resumed.state_dict())
    assert_same(state_of(first), state_of(other))
    assert rows(first) == rows(other)
    assert [row["step"] for row in rows(other)] == [str(step) for step in range(8)]
    assert result.steps == straight.steps == 8
    assert [row["total"] for row in result.losses] == [row["total"] for row in straight.losses]


def test_a_killed_process_resumes_from_its_last_checkpoint(tmp_path: Path) -> None:
    """Rows and points beyond the checkpoint are made again, and stand in the files once."""

    def crash(step: int) -> Item:
        if step == 7:
            raise RuntimeError("the power went")
        return items()[step % 4]

    with pytest.raises(RuntimeError):
        trainer(net(), tmp_path / "b", batches=crash, checkpoint_every=3, log_every=1).run()
    assert len(rows(tmp_path / "b")) == 7
    assert load_state(tmp_path / "b" / "last.pt").step == 6
    model, whole = net(), net()
    trainer(model, tmp_path / "b", checkpoint_every=5, log_every=1).run(resume=True)
    trainer(whole, tmp_path / "a").run()
    assert_same(model.state_dict(), whole.state_dict())
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    events = EventAccumulator(str(tmp_path / "b" / "tensorboard")).Reload()  # type: ignore[no-untyped-call]
    points = events.Scalars("train/total")  # type: ignore[no-untyped-call]
    assert [point.step for point in points] == list(range(8))
    assert [point.value for point in points] == pytest.approx([float(row["total"]) for row in rows(tmp_path / "a")])


def test_an_interrupt_in_the_optimizer_waits_for_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real Ctrl-C after the weights moved and before the step was counted."""
    step, count = torch.optim.AdamW.step, []

    def interrupting(self: Any, *arguments: Any) -> Any:
        value = step(self, *arguments)
        count.append(1)
        if len(count) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            sum(range(10000))  # Python runs the handler here at the latest
        return value

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupting)
    model = net()
    with pytest.raises(KeyboardInterrupt):
        trainer(model, tmp_path).run()
    state = load_state(tmp_path / "last.pt")
    assert state.step == 3
    assert_same(state.model, dict(model.state_dict()))


def test_a_finished_run_resumes_to_itself(tmp_path: Path) -> None:
    trainer(net(), tmp_path).run()
    model, before = net(), state_of(tmp_path)
    assert trainer(model, tmp_path).run(resume=True).steps == 8
    assert_same(state_of(tmp_path), before)
    assert_same(dict(model.state_dict()), before["model"])


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    trainer(net(), tmp_path).run()
    with pytest.raises(TrainingError, match=r"last\.pt: an earlier run is here; resume it or name another folder"):
        trainer(net(), tmp_path).run()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"cut", "weights", "pickle"])
def test_damaged_or_foreign_files_are_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "last.pt"
    trainer(net(), tmp_path).run()
    if content == b"cut":
        path.write_bytes(path.read_bytes()[:-500])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(net().state_dict() if content == "weights" else net(), path)
    model = net()
    with pytest.raises(TrainingError, match=r"last\.pt: .*(remove it and start without|give the folder of)") as caught:
        trainer(model, tmp_path).run(resume=True)
    assert "\n" not in str(caught.value)
    assert_same(model.state_dict(), net().state_dict())


class Intruder:
    """Pickles into a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    torch.save(Intruder(tmp_path / "made"), tmp_path / "last.pt")
    with pytest.raises(TrainingError, match=r"last\.pt: damaged, or not a training state \(UnpicklingError\)"):
        trainer(net(), tmp_path).run(resume=True)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("change", [{"lr": 0.1}, {"steps": 9}, {"seed": 1}, {"betas": (0.8, 0.99)}, {"clip": None}])
def test_other_options_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    trainer(net(), tmp_path).run()
    (name,) = change
    with pytest.raises(TrainingError, match=rf"last\.pt: {name} was .*, now it is .*; resume with {name}="):
        trainer(net(), tmp_path, **change).run(resume=True)


def test_checkpoint_and_log_interval_may_change(tmp_path: Path) -> None:
    interrupted(tmp_path, 5, items(), "one-cycle")
    assert trainer(net(), tmp_path, checkpoint_every=0, log_every=1).run(resume=True).steps == 8


def test_another_model_is_refused(tmp_path: Path) -> None:
    trainer(net(), tmp_path).run()
    renamed, wider, frozen = net(), net(), net()
    renamed.extra = nn.Linear(2, 2)
    wider.out = nn.Linear(4, 5)
    frozen.conv.weight.requires_grad_(False)
    for model, message in (
        (renamed, "only the model has extra.weight"),
        (wider, r"out.weight is \[3, 4\] in the file, \[5, 4\] in the model"),
        (frozen, "conv.weight was trained in one run and not in the other"),
    ):
        with pytest.raises(TrainingError, match=message):
            trainer(model, tmp_path).run(resume=True)


def test_resume_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"last\.pt: no such file"):
        trainer(net(), tmp_path / "new").run(resume=True)
    with pytest.raises(TrainingError, match="the run has no folder"):
        trainer(net()).run(resume=True)
