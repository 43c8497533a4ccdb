"""One cell: theta_init -> scores -> mask -> batch norm measured anew -> metric -> training, mask held -> metric.

Where channels are pruned the network is compacted after the mask, and there is nothing to hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from fastalter.altermoma import Clock
from fastalter.comparison.cell import Cell, Result
from fastalter.comparison.study import Study
from fastalter.criteria import Scores
from fastalter.data import Batch
from fastalter.errors import DataError
from fastalter.evaluation import evaluate_model
from fastalter.finetuning import finetune_model
from fastalter.masks import Mask, prune_model
from fastalter.report.progress import ProgressFunction
from fastalter.scoring import score_model
from fastalter.structure.compaction.compact import compact_model
from fastalter.structure.mask import ChannelMask
from fastalter.training.recalibrate import recalibrate

MAIN_METRICS = ("mean_ap", "nd_score", "tp_errors", "mean_label_aps")


@dataclass
class Work:
    """Where a cell keeps what it can go on from: scores, training states, results in the official layout."""

    folder: Path
    progress: ProgressFunction = lambda stage, done, total: None
    clock: Clock = field(default_factory=Clock)


def run_cell(cell: Cell, study: Study, work: Work) -> Result:
    """Run one cell, from wherever an earlier attempt stopped.

    Returns:
        "before" and "after" the training: mean_ap, nd_score, tp_errors, mean_label_aps (before: None where the regime
        has no such state); "dropped": the same after training with each of the judge's sensors dropped; "kept": branch
        -> kept share of its weights or channel groups; "reached": of channels, the share that is gone by every budget;
        "seconds" per stage; and what identifies the cell.

    Raises:
        FastalterError: of the step that failed; what was finished before it stays in the work folder.
    """
    model = cell.regime.start(cell.seed)
    batches = study.trained(cell.seed, cell.regime)
    mask = _mask(cell, study, work, model)
    folder = work.folder / "cells" / cell.name
    before = None
    model, held = _pruned(model, mask)
    if cell.regime.before:
        _settle(model, batches, study, work)
        before = _judged(model, study, work, folder / "before")
    _train(cell, model, batches, held, study, work)
    after = _judged(model, study, work, folder / "after")
    dropped = _judged_with_drops(model, study, work, folder)
    return {
        "regime": cell.regime.name,
        "method": cell.method.name,
        "settings": cell.method.describe(),
        "ratio": cell.ratio,
        "seed": cell.seed,
        "key": cell.key(study),
        "before": before,
        "after": after,
        "dropped": dropped,
        "kept": None if mask is None else _shares(mask),
        "reached": None if mask is None else mask.metadata.get("reached"),
        "seconds": {stage: round(seconds, 1) for stage, seconds in work.clock.seconds.items()},
    }


def run_dropped(cell: Cell, study: Study, work: Work) -> dict[str, dict[str, Any]]:
    """The metrics of a finished cell's network with each of the judge's sensors dropped, by sensor.

    Goes on from what `run_cell` left in the work folder, so nothing is trained again.

    Raises:
        DataError: the work folder does not hold the cell's training.
        FastalterError: of the step that failed.
    """
    folder = work.folder / "cells" / cell.name
    if not (folder / "training" / "last.pt").exists():
        raise DataError(f"{folder}: no training of this cell here; run the cell first, with the same work folder")
    model = cell.regime.start(cell.seed)
    model, held = _pruned(model, _mask(cell, study, work, model))
    _train(cell, model, study.trained(cell.seed, cell.regime), held, study, work)
    return _judged_with_drops(model, study, work, folder)


def _mask(cell: Cell, study: Study, work: Work, model: nn.Module) -> Mask | None:
    if cell.method.criterion is None:
        return None
    with work.clock.stage("score"):
        return scored(cell, study, work, model).mask(cell.ratio, budget=cell.regime.budget)


def _pruned(model: nn.Module, mask: Mask | None) -> tuple[nn.Module, Mask | None]:
    """The network that goes on, and the mask that its training has to hold: none where what is pruned is gone."""
    if isinstance(mask, ChannelMask):
        return compact_model(model, mask), None
    if mask is not None:
        prune_model(model, mask).remove()
    return model, mask


def scored(cell: Cell, study: Study, work: Work, model: nn.Module) -> Scores:
    """The cell's scores, made once for all ratios of a method and a seed."""
    method = cell.method
    at_ratio = f"-{100 * cell.ratio:g}" if method.per_ratio else ""
    name = f"{cell.regime.name}-{method.name}{at_ratio}-seed{cell.seed}-{_scoring_key(cell, study)}".replace(" ", "-")
    path = work.folder / "scores" / f"{name}.safetensors"
    if path.is_file():
        return Scores.load(path)
    assert method.criterion is not None
    scores = score_model(
        model,
        study.scored(cell.seed, cell.regime),
        method=method.criterion,
        settings=method.settings,
        ratio=cell.ratio,
        granularity="weight" if cell.regime.budget is None else "channel",
        seed=cell.seed,
        progress=work.progress,
        **method.arguments,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    scores.save(path)
    return scores


def _scoring_key(cell: Cell, study: Study) -> str:
    # What scoring does not depend on is set to one value, so that cells which differ in it share a file.
    regime = replace(cell.regime, options=replace(cell.regime.options, steps=1))
    return replace(cell, regime=regime, ratio=cell.ratio if cell.method.per_ratio else 0.0).key(study)


def _train(
    cell: Cell, model: nn.Module, batches: Callable[[int], Batch], mask: Mask | None, study: Study, work: Work
) -> None:
    """Masks held, from wherever an earlier attempt stopped; then batch norm measured anew."""
    folder = work.folder / "cells" / cell.name / "training"
    with work.clock.stage("train"):
        options = replace(cell.regime.options, seed=cell.seed)
        resume = (folder / "last.pt").exists()
        finetune_model(model, batches, mask, options=options, folder=folder, resume=resume)
    _settle(model, batches, study, work)


def _settle(model: nn.Module, batches: Callable[[int], Batch], study: Study, work: Work) -> None:
    with work.clock.stage("settle"):
        recalibrate(model, batches, count=study.settle)


def _judged(model: nn.Module, study: Study, work: Work, folder: Path, drop: str | None = None) -> dict[str, Any]:
    with work.clock.stage("evaluate"):
        batches = study.judge.batches(model)
        found = evaluate_model(model, study.judge.frames, drop=drop, folder=folder, batches=batches).to_dict()
    return {name: found[name] for name in MAIN_METRICS}


def _judged_with_drops(model: nn.Module, study: Study, work: Work, folder: Path) -> dict[str, dict[str, Any]]:
    return {sensor: _judged(model, study, work, folder / sensor, sensor) for sensor in study.judge.drops}


def _shares(mask: Mask) -> dict[str, float]:
    """Branch -> kept share of its prunable weights."""
    sizes = {branch: mask.layout.range(branch) for branch in mask.layout.branches}
    return {
        branch: round(kept / (sizes[branch].stop - sizes[branch].start), 5)
        for branch, kept in mask.kept_by_branch().items()
    }
