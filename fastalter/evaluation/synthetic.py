"""A small synthetic dataset with a split of its own, so that the official metric runs without any download."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastalter.data.loading import SYNTHETIC_SEED, synthetic_settings
from fastalter.report.progress import ProgressFunction

SAMPLES = 4
"""Frames in a scene."""


@contextmanager
def synthetic_dataset(
    image_size: tuple[int, int], scenes: int, sweeps: int, seed: int, work: Path | None, progress: ProgressFunction
) -> Iterator[Path]:
    """Root of a dataset for images (H, W) of the network: in a folder of `work` that a later call finds again, or, for
    None, in one that is gone after the block. The same arguments give the same files.

    The seed is moved past those that `data.load` and `training_batches` use, so no model was trained on its scenes.
    Raises DataError where it cannot be written.
    """
    from fastalter.data.synthetic.dataset import write_dataset

    moved = seed + 2 * SYNTHETIC_SEED
    settings = synthetic_settings(image_size, sweeps, moved, val_scenes=scenes, samples=SAMPLES)
    height, width = settings.image_size
    name = f"synthetic-{scenes}x{SAMPLES}-{height}x{width}-sweeps{settings.sweeps}-seed{seed}"
    with tempfile.TemporaryDirectory() as scratch:
        root = (work or Path(scratch)) / name
        if not root.exists():
            root.parent.mkdir(exist_ok=True)
            # One process: workers are started anew with the caller's main module, which a plain script does not survive
            write_dataset(root, settings, workers=1, progress=progress)
        yield root
