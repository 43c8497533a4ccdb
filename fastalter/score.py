"""python -m fastalter.score: a checkpoint in; scores, a mask and a readable summary out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fastalter.cli import run
from fastalter.flags import Device, ImageSize, Json, ModelName
from fastalter.options import parse_min_keep
from fastalter.pipeline import ScoreOptions, ratio_for, score_checkpoint
from fastalter.report.progress import progress_bars
from fastalter.report.terminal import show_run

DEFAULT = ScoreOptions()

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def score(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A checkpoint file. Left out: random weights of --model.", metavar="CKPT")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="nuscenes:/path[:version], frames:DIR or synthetic. Left out: synthetic.")
    ] = None,
    model: ModelName = None,
    method: Annotated[str, typer.Option(help="The criterion.")] = DEFAULT.method,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the criterion. May be repeated."),
    ] = None,
    batches: Annotated[int, typer.Option(help="Batches scored, and steps of each reactivation.")] = DEFAULT.batches,
    batch_size: Annotated[int, typer.Option(help="Samples in a batch.")] = DEFAULT.batch_size,
    image_size: ImageSize = None,
    sweeps: Annotated[int, typer.Option(help="Earlier LiDAR scans added to each sample.")] = DEFAULT.sweeps,
    lr: Annotated[float, typer.Option(help="Learning rate of the reactivation (plain SGD).")] = DEFAULT.lr,
    alpha: Annotated[float, typer.Option(help="Weight of DeCI.")] = DEFAULT.alpha,
    beta: Annotated[float, typer.Option(help="Weight of ReRI.")] = DEFAULT.beta,
    reri_data: Annotated[
        str, typer.Option(help="paired: both gradients on the same data. paper: the second on the last batch.")
    ] = DEFAULT.reri_data,
    bn: Annotated[str, typer.Option(help="Batch norm while scoring: train or frozen.")] = DEFAULT.bn,
    ratio: Annotated[
        float | None,
        typer.Option(help="Fraction of the prunable weights to remove, in [0, 1).", show_default=str(DEFAULT.ratio)),
    ] = None,
    granularity: Annotated[
        str, typer.Option(help="weight: single weights. channel: whole channels and attention heads.")
    ] = DEFAULT.granularity,
    budget: Annotated[
        str | None,
        typer.Option(help="Of channels, what the ratio is of: channels, parameters or flops.", show_default="channels"),
    ] = None,
    min_keep: Annotated[
        str | None, typer.Option(help="The least share (0.01) or count (1) that every layer keeps.")
    ] = None,
    round_to: Annotated[int | None, typer.Option(help="Of channels: every layer keeps a multiple of 8 or 16.")] = None,
    n_m: Annotated[
        str | None, typer.Option("--n-m", help="2:4: keep two of every four inputs, in place of a ratio.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the scores here (safetensors).")] = None,
    mask: Annotated[Path | None, typer.Option(help="Write the mask here (safetensors).")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the kept fraction per layer here (png, pdf, svg).")] = None,
    device: Device = DEFAULT.device,
    seed: Annotated[int, typer.Option(help="Seed of random weights, data and views.")] = DEFAULT.seed,
    direct: Annotated[bool, typer.Option("--direct", help="The plain form of Algorithm 1: slow, the oracle.")] = False,
    terms: Annotated[
        bool, typer.Option("--terms", help="Keep DeCI and ReRI of every weight in the scores file (altermoma).")
    ] = False,
    json: Json = False,
) -> None:
    """Score a fusion checkpoint: which weights does each sensor's branch, and the fusion, keep at the ratio?"""
    options = ScoreOptions(
        checkpoint=checkpoint,
        model=model,
        data=data,
        method=method,
        settings=tuple(settings or ()),
        batches=batches,
        batch_size=batch_size,
        image_size=image_size,
        sweeps=sweeps,
        lr=lr,
        alpha=alpha,
        beta=beta,
        reri_data=reri_data,
        bn=bn,
        ratio=ratio_for(ratio, n_m),
        granularity=granularity,
        budget=budget,
        min_keep=parse_min_keep(min_keep),
        round_to=round_to,
        n_m=n_m,
        out=out,
        mask=mask,
        plot=plot,
        device=device,
        seed=seed,
        direct=direct,
        terms=terms,
    )
    with progress_bars(enabled=not json) as progress:
        result = score_checkpoint(options, progress)
    show_run(result, as_json=json)


def main(arguments: list[str] | None = None) -> int:
    """The verb as a function: its exit status."""
    return run(app, arguments)


if __name__ == "__main__":
    sys.exit(main())
