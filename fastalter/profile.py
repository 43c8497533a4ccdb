"""python -m fastalter.profile: parameters, GFLOPs, time and memory of a network, by branch and part."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fastalter.cli import run
from fastalter.flags import Device, ImageSize, Json, ModelName
from fastalter.profiling.job import ProfileOptions, profile_checkpoint
from fastalter.report.profile import show_profile
from fastalter.report.progress import progress_bars

DEFAULT = ProfileOptions()

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def profile(
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(help="A checkpoint file, or two to compare. Left out: --model.", metavar="CKPT [OTHER]"),
    ] = None,
    model: ModelName = DEFAULT.model,
    data: Annotated[
        str | None, typer.Option(help="nuscenes:/path[:version[:split]], frames:DIR or synthetic (the default).")
    ] = DEFAULT.data,
    batch_size: Annotated[int, typer.Option(help="Samples in the batch.")] = DEFAULT.batch_size,
    image_size: ImageSize = None,
    sweeps: Annotated[int, typer.Option(help="Earlier LiDAR scans added to each sample.")] = DEFAULT.sweeps,
    rounds: Annotated[int, typer.Option(help="Forward passes that are timed.")] = DEFAULT.rounds,
    warmup: Annotated[int, typer.Option(help="Forward passes before them.")] = DEFAULT.warmup,
    device: Device = DEFAULT.device,
    seed: Annotated[int, typer.Option(help="Seed of data and random weights.")] = DEFAULT.seed,
    json: Json = False,
) -> None:
    """Show what every part of a fusion network costs; two checkpoints also side by side."""
    options = ProfileOptions(
        checkpoints=tuple(checkpoints or ()),
        model=model,
        data=data,
        batch_size=batch_size,
        image_size=image_size,
        sweeps=sweeps,
        rounds=rounds,
        warmup=warmup,
        device=device,
        seed=seed,
    )
    with progress_bars(enabled=not json) as progress:
        found = profile_checkpoint(options, progress)
    show_profile(found, as_json=json)


def main(arguments: list[str] | None = None) -> int:
    """The verb as a function: its exit status."""
    return run(app, arguments)


if __name__ == "__main__":
    sys.exit(main())
