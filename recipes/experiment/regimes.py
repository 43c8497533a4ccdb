"""The two regimes, and the data and the parents that both take from the recipe of the embedded checkpoint."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from fastalter import models
from fastalter.artifacts import atomic_path, sha256
from fastalter.assets import EMBEDDED
from fastalter.checkpoint import load_checkpoint
from fastalter.comparison import Judge, Regime, Study
from fastalter.data import Batch, load
from fastalter.data.loading import training_batches
from fastalter.data.nuscenes import NuScenesFrames
from fastalter.data.synthetic.tables import TRAIN, VAL, VERSION
from fastalter.data.views import Batches
from fastalter.models.bevfusion import BEVFusion
from fastalter.training import TrainOptions
from recipes.experiment.methods import B
from recipes.experiment.parents import BACKBONES, read_backbones
from recipes.tiny_checkpoint import MODEL, graft

SCORED = 8
"""Samples in each of the B batches that every method scores on."""
TUNE, REPORT = "experiment_tune", "experiment_report"
"""Halves of the validation scenes: settings are chosen on one, the table is made on the other."""
KEPT_BYTES = 1 << 30
"""Prepared batches of a seed that a worker keeps for its next cells, and as much again of frames to judge by."""


def trained() -> Regime:
    """The trained fusion model is pruned, then fine-tuned."""
    options = TrainOptions(steps=60, lr=1e-3, warmup=0.1, clip=10.0, checkpoint_every=0)
    return Regime("trained", lambda seed: load_checkpoint(EMBEDDED).model, {"fusion": sha256(EMBEDDED)}, options, 8)


def longer() -> Regime:
    """`trained` with the 40 steps more that `modalfisher` takes between its rounds: are they what it gains by?"""
    regime = trained()
    return replace(regime, name="trained longer", options=replace(regime.options, steps=100))


def at_load(backbones: Path = BACKBONES) -> Regime:
    """Single-sensor backbones go into a fresh fusion model, which is pruned before it is trained.

    They come from a file of the repository, because a training ends in other bits on another machine.
    """

    def start(seed: int) -> BEVFusion:
        model = models.build(MODEL, seed=1000 + seed)
        graft(model, read_backbones(backbones))
        return model

    origin = {"backbones": sha256(backbones)}
    options = TrainOptions(steps=300, lr=2e-3, warmup=0.1, clip=10.0, checkpoint_every=50)
    # 60 steps of 8 leave every method at mAP .01; 240 of 4 bring a 90 % mask to .20 (tuning scenes).
    return Regime("at load", start, origin, options, 4, before=False)


def at_load_longer(backbones: Path = BACKBONES) -> Regime:
    """`at load` with twice the steps: mAP .52 unpruned, and .23 of it without the cameras (tuning scenes)."""
    regime = at_load(backbones)
    return replace(regime, name="at load longer", options=replace(regime.options, steps=600))


def structured() -> Regime:
    """Channels leave the trained fusion model, as many as a share of its FLOPs, and the smaller one is fine-tuned."""
    return replace(trained(), name="structured", budget="flops")


def study(data: Path, split: str = REPORT) -> Study:
    """Scoring and training batches from the train split, the metric on one half of the validation scenes."""
    spec = f"nuscenes:{data}:{VERSION}:{TRAIN}"
    config = models.config_of(MODEL)
    judge = Judge(NuScenesFrames(data, VERSION, split, keep_unseen=True), cache_bytes=KEPT_BYTES)
    return Study(
        scored=lambda seed, regime: load(spec, config=config, batches=B, batch_size=SCORED, seed=seed),
        trained=lambda seed, regime: kept_batches(spec, regime.batch_size, 500 + seed),
        judge=judge,
        data=f"synthetic, {len(judge.frames)} frames of {split}",
    )


@lru_cache(maxsize=1)
def kept_batches(spec: str, batch_size: int, seed: int) -> Callable[[int], Batch]:
    """`training_batches` of the tiny network, made once for all cells in a row that train on the same ones."""
    make = training_batches(spec, config=models.config_of(MODEL), batch_size=batch_size, seed=seed, augment=False)
    return Batches(make, sys.maxsize, spec, cache_bytes=KEPT_BYTES).__getitem__


def write_splits(data: Path) -> None:
    """Name the halves of the validation scenes in the dataset's splits.json."""
    path = data / VERSION / "splits.json"
    splits = json.loads(path.read_text())
    scenes = splits[VAL]
    halves = {TUNE: scenes[: len(scenes) // 2], REPORT: scenes[len(scenes) // 2 :]}
    if {**splits, **halves} != splits:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps({**splits, **halves}, indent=1))


def use_one_thread() -> None:
    """Two processes of one thread each are steadier than one of two, and a cell's bits do not depend on the load.

    What the process frees it keeps: a training step gives back and asks for the same hundreds of MB, and the pages that
    the system clears in between are a tenth of its time.
    """
    torch.set_num_threads(1)
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # glibc's malloc.h
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_mmap_max, 0)
