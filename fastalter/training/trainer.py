"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastalter.errors import FastalterError, TrainingError
from fastalter.report.progress import ProgressFunction
from fastalter.training.guard import Buffers, in_mode, interrupts_deferred
from fastalter.training.log import TrainLog
from fastalter.training.losses import finite_tensors, loss_terms, not_finite, total_of
from fastalter.training.options import TrainOptions
from fastalter.training.rng import preserved_rng, seed_step
from fastalter.training.schedule import make_optimizer, make_scheduler
from fastalter.training.state import TrainState, check_state, load_state, save_state

Loss = Callable[[nn.Module, Any], Any]
Batches = Callable[[int], Any] | Sequence[Any]


def quiet(stage: str, done: int, total: int) -> None:
    """A progress function that shows nothing."""


@dataclass(frozen=True)
class TrainResult:
    """A run that came to its end.

    steps    completed steps, those before a resume included
    losses   one row per completed step: step, lr, grad_norm (before clipping), seconds, total, and each loss term
    seconds  wall time of this call of `run`
    folder   where last.pt, losses.csv and tensorboard/ are, or None
    """

    steps: int
    losses: list[dict[str, float]]
    seconds: float
    folder: Path | None


class Trainer:
    """Trains a model in place with AdamW.

    What a step draws at random depends on (options.seed, step) alone, and the model is changed only by steps that are
    finite throughout. So a run that was stopped and resumed is, bit for bit, the run that was never stopped.

    Args:
        model: trained in place, in train mode; parameters that require no gradient stay as they are.
        loss: loss(model, batch) -> tensor, or a dict whose entries named "...loss..." are summed.
        batches: step -> batch, or a sequence that is gone through again and again.
        options: see `TrainOptions`.
        folder: for last.pt (the state after the last checkpoint), losses.csv and tensorboard/; made where missing.
            None: nothing is written.
        progress: hears ("train", completed steps, all steps).
        after_step: called in order after each optimizer step, before anything is logged or saved.

    Raises:
        TrainingError: no batches, or nothing to train.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batches: Batches,
        options: TrainOptions,
        *,
        folder: Path | None = None,
        progress: ProgressFunction = quiet,
        after_step: Sequence[Callable[[], None]] = (),
    ) -> None:
        if not callable(batches) and len(batches) == 0:
            raise TrainingError("batches: the sequence is empty; give one batch or more")
        self.model, self.loss, self.batches, self.options = model, loss, batches, options
        self.folder = Path(folder) if folder is not None else None
        self.progress, self.after_step = progress, tuple(after_step)
        self._renew()

    def run(self, resume: bool = False) -> TrainResult:
        """Train up to options.steps steps; from folder/last.pt on if `resume` is set, else from the first.

        The caller's random generators and the model's train flags are afterwards what they were, also after an error.
        Upon KeyboardInterrupt the last completed step is saved before it propagates.

        Raises:
            TrainingError: a loss, the gradient or the weights are not finite (the model is then as it was before that
                step); folder/last.pt cannot be resumed, or is there and `resume` is not set.
        """
        started = time.perf_counter()
        with preserved_rng(), in_mode(self.model, train=True):
            self._start(resume)
            try:
                self._train()
            except KeyboardInterrupt as interrupt:
                self._save_upon(interrupt)
                raise
            finally:
                if self._log:
                    self._log.close()
                self._optimizer.zero_grad(set_to_none=True)
        return TrainResult(self._done, self._history, time.perf_counter() - started, self.folder)

    def _renew(self) -> None:
        self._optimizer, self._trainable = make_optimizer(self.model, self.options)
        self._scheduler = make_scheduler(self._optimizer, self.options)
        self._watched = finite_tensors(self.model)  # a constant buffer may hold infinities on purpose
        self._done = 0
        self._saved: int | None = None
        self._torn = False
        self._history: list[dict[str, float]] = []
        self._log: TrainLog | None = None

    def _start(self, resume: bool) -> None:
        self._renew()
        if self.folder is None:
            if resume:
                raise TrainingError("resume: the run has no folder; give the one that holds its last.pt")
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"{self.folder}: cannot be made ({error.strerror}); name another folder") from error
        if resume:
            self._resume(self.folder / "last.pt")
        elif (self.folder / "last.pt").exists():
            raise TrainingError(f"{self.folder / 'last.pt'}: an earlier run is here; resume it or name another folder")
        self._log = TrainLog(self.folder, self._history, self.options.log_every)

    def _resume(self, path: Path) -> None:
        state = load_state(path)
        check_state(path, state, self.options, self.model, self._trainable)
        self.model.load_state_dict(state.model)
        self._optimizer.load_state_dict(state.optimizer)
        self._scheduler.load_state_dict(state.scheduler)
        self._watched = finite_tensors(self.model)
        self._history, self._done, self._saved = state.history, state.step, state.step

    def _train(self) -> None:
        total, every = self.options.steps, self.options.checkpoint_every
        self.progress("train", self._done, total)
        while self._done < total:
            self._step(self._done)
            if self._done == total or (every and self._done % every == 0):
                self._save()
            self.progress("train", self._done, total)

    def _step(self, step: int) -> None:
        buffers = Buffers(self.model)
        try:
            row = self._gradients(step)
            with interrupts_deferred():
                self._commit(row)
        except BaseException:
            if self._done == step and not self._torn:
                buffers.restore()
            raise

    def _gradients(self, step: int) -> dict[str, float]:
        """Leave the clipped gradient of one batch in the parameters; the row of the step."""
        started = time.perf_counter()
        seed_step(self.options.seed, step)
        index, batch = self._batch(step)
        self._optimizer.zero_grad(set_to_none=True)
        terms = loss_terms(self.loss(self.model, batch))
        total = total_of(terms)
        row = {"total": float(total.detach()), **{name: float(term.detach()) for name, term in terms.items()}}
        if wrong := not_finite(row):
            self._stop(step, index, batch, f"not finite: {wrong}")
        total.backward()  # type: ignore[no-untyped-call]
        norm = float(self._clip())
        if not math.isfinite(norm):
            self._stop(step, index, batch, f"all losses are finite, but the gradient norm is {norm}")
        rate = float(self._optimizer.param_groups[0]["lr"])
        return {"step": step, "lr": rate, "grad_norm": norm, "seconds": time.perf_counter() - started, **row}

    def _batch(self, step: int) -> tuple[int, Any]:
        if callable(self.batches):
            return step, self.batches(step)
        index = step % len(self.batches)
        return index, self.batches[index]

    def _clip(self) -> Tensor:
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        limit = math.inf if self.options.clip is None else self.options.clip
        return torch.nn.utils.clip_grad_norm_(parameters, limit)

    def _commit(self, row: dict[str, float]) -> None:
        """Make the step. An error in here, from a hook say, leaves a step that is neither made nor unmade."""
        self._torn = True
        self._optimizer.step()
        for hook in self.after_step:
            hook()
        if self._done + 1 < self.options.steps:
            self._scheduler.step()
        self._history.append(row)
        if self._log:
            self._log.add(row)
        self._done += 1
        self._torn = False

    def _save(self) -> None:
        """Write folder/last.pt unless it is there already.

        Raises:
            TrainingError: the weights are not finite; the file is left as it is.
        """
        if self.folder is None or self._saved == self._done:
            return
        if wrong := sorted(self._watched - finite_tensors(self.model)):
            raise TrainingError(f"after step {self._done - 1}, {wrong[0]} is not finite; {self._last_good()}")
        save_state(self.folder / "last.pt", self._state())
        self._saved = self._done

    def _state(self) -> TrainState:
        return TrainState(
            step=self._done,
            model=dict(self.model.state_dict()),
            optimizer=self._optimizer.state_dict(),
            scheduler=self._scheduler.state_dict(),
            options=asdict(self.options),
            trainable=self._trainable,
            history=self._history,
        )

    def _save_upon(self, interrupt: KeyboardInterrupt) -> None:
        if self._torn:
            interrupt.add_note(f"nothing saved: the interrupt came from an after_step hook; {self._last_good()}")
            return
        try:
            self._save()
        except (FastalterError, OSError) as error:
            interrupt.add_note(f"nothing saved: {error}")

    def _stop(self, step: int, index: int, batch: Any, what: str) -> None:
        tokens = list(getattr(batch, "tokens", None) or [])
        more = f" and {len(tokens) - 4} more" if len(tokens) > 4 else ""
        name = f"batch {index} ({', '.join(map(str, tokens[:4]))}{more})" if tokens else f"batch {index}"
        raise TrainingError(f"step {step}, {name}: {what}; the step was not made, {self._last_good()}")

    def _last_good(self) -> str:
        if self.folder is None or self._saved is None:
            return "no checkpoint was written"
        return f"the last good checkpoint is {self.folder / 'last.pt'} with {self._saved} steps"
