"""python -m fastalter.evaluate: mAP, NDS and errors by nuScenes' own metric, with sensors dropped as well."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fastalter.cli import run
from fastalter.evaluation.job import EvaluateOptions, evaluate_checkpoint
from fastalter.flags import Device, ImageSize, Json, ModelName
from fastalter.report.evaluation import show_evaluation
from fastalter.report.progress import progress_bars

DEFAULT = EvaluateOptions()

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def evaluate(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A checkpoint file. Left out: --results is evaluated.", metavar="CKPT")
    ] = None,
    data: Annotated[
        str, typer.Option(help="nuscenes:/path:version:split, or synthetic: a small dataset made for the purpose.")
    ] = DEFAULT.data,
    drop: Annotated[
        list[str] | None,
        typer.Option(help="Also with this sensor dark: camera, lidar, CAM_FRONT, ...; may be given several times."),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="A results file in nuScenes' detection layout instead of a checkpoint.")
    ] = None,
    model: ModelName = None,
    batch_size: Annotated[int, typer.Option(help="Frames in a batch.")] = DEFAULT.batch_size,
    sweeps: Annotated[int, typer.Option(help="Earlier LiDAR scans added to each frame.")] = DEFAULT.sweeps,
    image_size: ImageSize = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for results and metrics per state; finished ones are not run again.")
    ] = None,
    work: Annotated[Path | None, typer.Option(help="Folder that keeps the synthetic dataset.")] = None,
    scenes: Annotated[int, typer.Option(help="Scenes of the synthetic dataset, four frames each.")] = DEFAULT.scenes,
    seed: Annotated[int, typer.Option(help="Seed of the synthetic dataset.")] = DEFAULT.seed,
    device: Device = DEFAULT.device,
    json: Json = False,
) -> None:
    """Evaluate a fusion checkpoint on every frame of a split: as it is, and with each --drop sensor dark."""
    options = EvaluateOptions(
        checkpoint=checkpoint,
        results=results,
        data=data,
        model=model,
        drop=tuple(drop or ()),
        batch_size=batch_size,
        sweeps=sweeps,
        image_size=image_size,
        scenes=scenes,
        out=out,
        work=work,
        device=device,
        seed=seed,
    )
    with progress_bars(enabled=not json) as progress:
        evaluation = evaluate_checkpoint(options, progress)
    show_evaluation(evaluation, as_json=json)


def main(arguments: list[str] | None = None) -> int:
    """The verb as a function: its exit status."""
    return run(app, arguments, stopped="states finished before are in --out, if it was given")


if __name__ == "__main__":
    sys.exit(main())
