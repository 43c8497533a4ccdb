"""The trainer with a mask held: pruned weights are zero after every step, their gradients before clipping."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fastalter.artifacts import atomic_path
from fastalter.errors import TrainingError
from fastalter.report.progress import ProgressFunction
from fastalter.training import Trainer, TrainOptions, TrainResult
from fastalter.training.trainer import Loss, quiet

if TYPE_CHECKING:
    from fastalter.masks import Mask

FACTS = "finetuning.json"
"""In the folder of a run, beside last.pt: what a resume must agree with."""


def finetune_model(
    model: nn.Module,
    batches: Callable[[int], Any] | Sequence[Any],
    mask: Mask | None = None,
    *,
    options: TrainOptions,
    folder: Path | None = None,
    resume: bool = False,
    progress: ProgressFunction = quiet,
    loss: Loss | None = None,
    facts: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train a model in place; with a mask, the weights that it drops stay exactly zero throughout.

    They are zeroed before the first step, and after it whatever the optimizer does; their gradients are zero before
    clipping, so that the norm, the moments and the steps are those of the sparse network. The hooks that see to it are
    removed at the end, also after an exception; to keep a model pruned for good, call `prune_model` and give no mask
    here. A resumed run ends bit for bit as the run that was never stopped.

    Args:
        batches: step -> batch, or a sequence gone through again and again.
        mask: of this model; None holds nothing.
        folder: see `Trainer`; it also gets finetuning.json, which says what was held.
        loss: loss(model, batch); default model.loss(batch), the batch moved to the model's device.
        facts: plain data about the run, such as where its batches come from; a resume with other facts is refused.

    Raises:
        MaskError: the mask is not of this model.
        TrainingError: see `Trainer`; a folder whose run had another mask or other facts.
    """
    known = {**(facts or {}), "mask": None if mask is None else mask_digest(mask)}
    trainer = Trainer(model, loss or _own_loss, batches, options, folder=folder, progress=progress)
    begun = folder is not None and (Path(folder) / "last.pt").is_file()
    if folder is not None and begun and resume:
        _compare(Path(folder) / FACTS, known)
    with _holding(model, mask):
        if folder is not None and not begun and not resume:
            _write(Path(folder) / FACTS, known)
        return trainer.run(resume)


def mask_digest(mask: Mask) -> str:
    """SHA-256 of which weights stay: names, shapes and bits, nothing of how the mask was made."""
    digest = hashlib.sha256(json.dumps(mask.layout.to_json()).encode())
    digest.update(mask.bits.cpu().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _holding(model: nn.Module, mask: Mask | None) -> Iterator[None]:
    if mask is None:
        yield
        return
    from fastalter.masks import prune_model

    pruned = prune_model(model, mask)
    try:
        yield
    finally:
        pruned.remove()


def _own_loss(model: nn.Module, batch: Any) -> Any:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return model.loss(batch.to(device) if hasattr(batch, "to") else batch)  # type: ignore[operator]


def _write(path: Path, known: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{path.parent}: cannot be made ({error.strerror}); name another folder") from error
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def _compare(path: Path, known: Mapping[str, Any]) -> None:
    """Hold a resume against what the run wrote when it began."""
    try:
        theirs = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise TrainingError(f"{path}: not readable ({error}); start a new run in another folder") from error
    ours = json.loads(json.dumps(known))
    for name in {**theirs, **ours}:
        if theirs.get(name) != ours.get(name):
            raise TrainingError(
                f"{path}: {name} was {theirs.get(name)!r}, now it is {ours.get(name)!r}; resume with the same {name}"
            )
