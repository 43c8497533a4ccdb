"""python -m fastalter.data.synthetic OUT: write a synthetic nuScenes dataset."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from fastalter.cli import run
from fastalter.data.synthetic.settings import SyntheticSettings
from fastalter.report.progress import progress_bars

DEFAULT = SyntheticSettings()

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def synthetic(
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not be there yet.")],
    scenes: Annotated[int, typer.Option(help="Scenes of the split synthetic_train.")] = DEFAULT.scenes,
    val_scenes: Annotated[int, typer.Option(help="Scenes of the split synthetic_val.")] = DEFAULT.val_scenes,
    samples: Annotated[int, typer.Option(help="Keyframes in a scene, half a second apart.")] = DEFAULT.samples,
    sweeps: Annotated[int, typer.Option(help="LiDAR scans between two keyframes.")] = DEFAULT.sweeps,
    image_size: Annotated[str, typer.Option(help="HxW of the images; the real sensor has 900x1600.")] = "108x192",
    azimuth_steps: Annotated[
        int, typer.Option(help="Directions of each LiDAR beam; the real sensor has 1085.")
    ] = DEFAULT.azimuth_steps,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = DEFAULT.seed,
    workers: Annotated[int, typer.Option(help="Processes; 0: one per core. The files do not depend on it.")] = 0,
) -> None:
    """Write a synthetic nuScenes dataset: six cameras, a 32-beam LiDAR, ten classes, for the official devkit."""
    from fastalter.data.synthetic.dataset import write_dataset
    from fastalter.data.synthetic.summary import describe
    from fastalter.options import parse_image_size

    size = parse_image_size(image_size)
    assert size is not None
    settings = SyntheticSettings(scenes, val_scenes, samples, sweeps, size, azimuth_steps, seed)
    start = time.perf_counter()
    with progress_bars() as progress:
        write_dataset(out, settings, workers or None, progress)
    print(describe(out, settings, time.perf_counter() - start))


def main(arguments: list[str] | None = None) -> int:
    """The command as a function: its exit status."""
    return run(app, arguments)


if __name__ == "__main__":
    sys.exit(main())
