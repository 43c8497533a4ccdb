"""The state of a training run on disk: all that the next step depends on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastalter.artifacts import atomic_path
from fastalter.errors import TrainingError
from fastalter.training.options import TrainOptions

KIND = "fastalter training state"
FREE = ("checkpoint_every", "log_every")
"""Options that may change upon a resume: no weight depends on them."""


@dataclass
class TrainState:
    """After `step` completed steps, every one finite.

    step       completed steps, and so the number of the next one
    model      the model's state_dict
    optimizer  its state_dict
    scheduler  its state_dict
    options    of `TrainOptions`, as a dict
    trainable  parameter names of each optimizer group, in order
    history    one row of losses.csv per completed step
    """

    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    options: dict[str, Any]
    trainable: list[list[str]]
    history: list[dict[str, float]]


def save_state(path: Path, state: TrainState) -> None:
    """Write the state whole or not at all."""
    with atomic_path(path) as temporary:
        torch.save({"kind": KIND, **vars(state)}, temporary)


def load_state(path: str | os.PathLike[str]) -> TrainState:
    """Read a state; nothing in the file is executed.

    Raises:
        TrainingError: no such file, a damaged one, or one that is no training state.
    """
    if not Path(path).is_file():
        raise TrainingError(f"{path}: no such file, so there is nothing to resume; start the run without resume")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error of its own: zip, pickle, end of file, key errors, ...
        # Its message is left out: it runs over many lines and advises to load the file unsafely.
        cause = type(error).__name__
        raise TrainingError(
            f"{path}: damaged, or not a training state ({cause}); remove it and start without resume"
        ) from error
    names = [field.name for field in fields(TrainState)]
    if not isinstance(content, dict) or content.get("kind") != KIND or any(name not in content for name in names):
        raise TrainingError(f"{path}: not a training state of fastalter; give the folder of the run to resume")
    return TrainState(**{name: content[name] for name in names})


def check_state(
    path: Path, state: TrainState, options: TrainOptions, model: nn.Module, trainable: list[list[str]]
) -> None:
    """Refuse a state that is not of this run.

    Raises:
        TrainingError: names the first option, parameter or buffer that differs.
    """
    for name, ours in asdict(options).items():
        theirs = state.options.get(name)
        if name not in FREE and theirs != ours:
            raise TrainingError(f"{path}: {name} was {theirs!r}, now it is {ours!r}; resume with {name}={theirs!r}")
    _check_tensors(path, state.model, model.state_dict())
    if state.trainable != trainable:
        differs = sorted({*_flat(state.trainable)} ^ {*_flat(trainable)})
        what = f"{differs[0]} was trained in one run and not in the other" if differs else "parameters are reordered"
        raise TrainingError(f"{path}: {what}; freeze the same parameters as before")


def _check_tensors(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for name in [*ours, *theirs]:
        if name not in theirs or name not in ours:
            side = "the model has" if name in ours else "the file has"
            raise TrainingError(f"{path}: only {side} {name}; resume with the model that the run began with")
        if isinstance(ours[name], Tensor) and ours[name].shape != theirs[name].shape:
            shapes = f"{list(theirs[name].shape)} in the file, {list(ours[name].shape)} in the model"
            raise TrainingError(f"{path}: {name} is {shapes}; resume with the model that the run began with")


def _flat(groups: list[list[str]]) -> list[str]:
    return [name for group in groups for name in group]
