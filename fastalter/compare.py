"""python -m fastalter.compare: criteria side by side on a checkpoint: same batches, ratios, fine-tuning and metric."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fastalter.cli import run
from fastalter.comparison.job import CompareOptions, compare_checkpoint
from fastalter.flags import Device, Json
from fastalter.report.comparison import show_comparison
from fastalter.report.progress import progress_bars

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def compare(
    checkpoint: Annotated[Path, typer.Argument(help="A fusion checkpoint.", metavar="CKPT")],
    train: Annotated[str, typer.Option(help="nuscenes:/path:version:split to score and fine-tune on.")],
    test: Annotated[str, typer.Option(help="nuscenes:/path:version:split that the official metric runs on.")],
    out: Annotated[Path, typer.Option(help="Folder of the finished cells and comparison.json; resumed from.")],
    methods: Annotated[str, typer.Option(help="Criteria.")] = "altermoma,deci,snip,magnitude,random",
    ratios: Annotated[str, typer.Option(help="Fractions of the prunable weights to remove.")] = "0.8,0.9",
    seeds: Annotated[int, typer.Option(help="Seeds, from 0 on: scoring batches and order of the training.")] = 1,
    batches: Annotated[int, typer.Option(help="Batches scored; the B of AlterMOMA.")] = 5,
    batch_size: Annotated[int, typer.Option(help="Samples in a batch.")] = 2,
    steps: Annotated[int, typer.Option(help="Fine-tuning steps of every cell.")] = 100,
    lr: Annotated[float, typer.Option(help="Peak learning rate of the fine-tuning.")] = 1e-4,
    sweeps: Annotated[int, typer.Option(help="Earlier LiDAR scans added to each sample.")] = 0,
    drop: Annotated[list[str] | None, typer.Option(help="Also without this sensor: camera, lidar, CAM_FRONT.")] = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Compare criteria: mAP and NDS before and after fine-tuning, mean and spread over seeds."""
    options = CompareOptions(
        checkpoint=checkpoint,
        train=train,
        test=test,
        out=out,
        methods=tuple(filter(None, methods.split(","))),
        ratios=tuple(_ratio(text) for text in filter(None, ratios.split(","))),
        seeds=seeds,
        batches=batches,
        batch_size=batch_size,
        steps=steps,
        lr=lr,
        sweeps=sweeps,
        drops=tuple(drop or ()),
        device=device,
    )
    with progress_bars(enabled=not json) as progress:
        comparison = compare_checkpoint(options, progress)
    show_comparison(comparison, as_json=json)


def _ratio(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        message = f"{text!r} is no number; give fractions such as 0.8,0.9"
        raise typer.BadParameter(message, param_hint="--ratios") from None


def main(arguments: list[str] | None = None) -> int:
    """The verb as a function: its exit status."""
    return run(app, arguments, stopped="finished cells are in --out; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
