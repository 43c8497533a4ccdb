"""The whole job of the compare verb as a function: a checkpoint, methods, ratios and seeds in; finished cells out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fastalter.errors import DataError, ScoringError
from fastalter.options import check_device, check_least
from fastalter.report.progress import ProgressFunction

if TYPE_CHECKING:
    from fastalter.comparison.cell import Cell, Result
    from fastalter.comparison.study import Study


@dataclass(frozen=True)
class CompareOptions:
    """What the verb's options say; see `python -m fastalter.compare --help`."""

    checkpoint: Path
    train: str
    test: str
    out: Path
    methods: tuple[str, ...] = ("altermoma", "deci", "snip", "magnitude", "random")
    ratios: tuple[float, ...] = (0.8, 0.9)
    seeds: int = 1
    batches: int = 5
    batch_size: int = 2
    steps: int = 100
    lr: float = 1e-4
    sweeps: int = 0
    drops: tuple[str, ...] = ()
    device: str = "cpu"


@dataclass(frozen=True)
class Comparison:
    """All finished cells, how many of them this call ran, and the JSON document that holds them."""

    results: list[Result]
    ran: int
    written: Path
    notes: list[str] = field(default_factory=list)


def compare_checkpoint(
    options: CompareOptions, progress: ProgressFunction = lambda stage, done, total: None
) -> Comparison:
    """Run the cells that `out` does not hold yet, then write out/comparison.json.

    Raises:
        FastalterError: an option that cannot be, or the first cell that fails; cells finished before it are kept.
    """
    check_options(options)
    from fastalter.comparison.document import write_document
    from fastalter.comparison.run import Work, run_cell

    study, cells, notes = _plan(options)
    options.out.mkdir(parents=True, exist_ok=True)
    results, ran = [], 0
    progress("cells", 0, len(cells))
    for done, cell in enumerate(cells, 1):
        result = cell.read(options.out / "cells", study)
        if result is None:
            result = run_cell(cell, study, Work(options.out / "work", progress))
            cell.write(options.out / "cells", result)
            ran += 1
        results.append(result)
        progress("cells", done, len(cells))
    return Comparison(results, ran, write_document(options.out / "comparison.json", results), notes)


def check_options(options: CompareOptions) -> None:
    """Everything that can be refused without opening a file; raises a FastalterError naming the option."""
    from fastalter.criteria import CRITERIA

    for name, values in (("--methods", options.methods), ("--ratios", options.ratios)):
        if not values:
            raise DataError(f"{name}: nothing to compare; give at least one, separated by commas")
    for method in options.methods:
        if method not in CRITERIA:
            raise ScoringError(f"--methods: {method!r} is not known; there are {', '.join(CRITERIA)}")
    for ratio in options.ratios:
        if not 0 < ratio < 1:
            raise DataError(f"--ratios: {ratio:g} is outside (0, 1); give fractions to remove, such as 0.8,0.9")
    check_least(options, seeds=1, batches=1, batch_size=1, steps=1, sweeps=0)
    check_device(options.device)


def _plan(options: CompareOptions) -> tuple[Study, list[Cell], list[str]]:
    from fastalter.altermoma import Reactivation
    from fastalter.checkpoint import load_checkpoint
    from fastalter.comparison.cell import Cell
    from fastalter.comparison.study import DENSE, Judge, Method, Regime, Study
    from fastalter.data import Batch, load
    from fastalter.data.loading import open_frames, training_batches
    from fastalter.data.nuscenes import NuScenesFrames
    from fastalter.models.bevfusion import BEVFusion
    from fastalter.training import TrainOptions

    frames = open_frames(options.test, sweeps=options.sweeps, keep_unseen=True)
    if not isinstance(frames, NuScenesFrames):
        raise DataError(f"--test {options.test}: the official metric needs nuscenes:/path:version:split")
    loaded = load_checkpoint(options.checkpoint)
    config = loaded.config
    training = TrainOptions(steps=options.steps, lr=options.lr, warmup=0.1, checkpoint_every=50)

    def start(seed: int) -> BEVFusion:
        return load_checkpoint(options.checkpoint).model.to(options.device)

    def scored(seed: int, regime: Regime) -> object:
        return load(
            options.train,
            config=config,
            batches=options.batches,
            batch_size=options.batch_size,
            sweeps=options.sweeps,
            seed=seed,
        )

    def trained(seed: int, regime: Regime) -> Callable[[int], Batch]:
        return training_batches(
            options.train, config=config, batch_size=options.batch_size, sweeps=options.sweeps, seed=seed
        )

    regime = Regime("trained", start, {"fusion": loaded.sha256}, training, options.batch_size)
    data = f"{options.train}, {options.batches} batches, {options.sweeps} sweeps; {options.test}"
    study = Study(scored, trained, Judge(frames, options.batch_size, options.drops), data)
    arguments = {"reactivation": Reactivation(batches=options.batches)}
    methods = [Method(name, name, arguments if name == "altermoma" else {}) for name in options.methods]
    cells = []
    for seed in range(options.seeds):
        cells.append(Cell(regime, DENSE, 0.0, seed))
        cells += [Cell(regime, method, ratio, seed) for ratio in options.ratios for method in methods]
    return study, cells, list(loaded.notes)
