"""What was written, in two lines."""

from __future__ import annotations

from pathlib import Path

from fastalter.data.synthetic.settings import SyntheticSettings
from fastalter.data.synthetic.tables import TRAIN, VAL, VERSION


def describe(root: Path, settings: SyntheticSettings, seconds: float) -> str:
    """Counts, how fast it went, and how to name the dataset to the other commands."""
    count = (settings.scenes + settings.val_scenes) * settings.samples
    return (
        f"wrote {root}: {count} synthetic samples in {settings.scenes} + {settings.val_scenes} scenes, "
        f"seed {settings.seed}; {seconds:.1f} s, {count / seconds:.1f} samples a second\n"
        f"use: --data nuscenes:{root}:{VERSION}:{TRAIN if settings.scenes else VAL}"
    )
