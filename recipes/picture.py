"""python -m recipes.picture OUT.png: a synthetic sample and what the embedded checkpoint finds in it.

The model sees the tiny images; the picture shows the same moment in larger ones.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fastalter.artifacts import atomic_path
from fastalter.assets import EMBEDDED
from fastalter.checkpoint import load_checkpoint
from fastalter.data import PrepareOptions, prepare
from fastalter.data.draw import draw_sample
from fastalter.data.synthetic import SyntheticFrames, SyntheticSettings
from fastalter.tasks.detection.detect import detect

SHOWN = (128, 352)
REACH, SCALE = 24.0, 22


def main(
    out: Annotated[Path, typer.Argument(help="The PNG to write.")],
    seed: Annotated[int, typer.Option(help="Of the scene; the recipe trains on seed 0.")] = 1,
    checkpoint: Annotated[Path, typer.Option(help="Whose detections to draw.")] = EMBEDDED,
) -> None:
    """Draw a synthetic sample: six cameras, the LiDAR from above, ground truth and detections."""
    model = load_checkpoint(checkpoint).model
    bounds = model.config.lidar.point_cloud_range
    settings = SyntheticSettings(scenes=1, val_scenes=0, samples=2, seed=seed)
    seen = prepare(SyntheticFrames(settings)[0], PrepareOptions(model.config.camera.image_size, bounds))
    (found,) = detect(model, [seen]).values()
    shown = prepare(SyntheticFrames(replace(settings, image_size=(216, 384)))[0], PrepareOptions(SHOWN, bounds))
    with atomic_path(out) as temporary:
        draw_sample(shown, temporary, reach=REACH, scale=SCALE, found=found)
    print(
        f"wrote {out}: synthetic scene of seed {seed}, {len(shown.boxes[0])} boxes, {len(found['scores'])} detections"
    )


if __name__ == "__main__":
    typer.run(main)
