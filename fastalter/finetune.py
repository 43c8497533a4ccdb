"""python -m fastalter.finetune: train a pruned checkpoint with its mask held."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fastalter.cli import run
from fastalter.finetuning.job import FinetuneOptions, finetune_checkpoint
from fastalter.flags import Device, ImageSize, Json
from fastalter.report.finetuning import show_finetuned
from fastalter.report.progress import progress_bars

DEFAULT = FinetuneOptions(Path(), Path(), Path(), steps=1, data="")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def finetune(
    checkpoint: Annotated[Path, typer.Argument(help="The pruned checkpoint.", metavar="CKPT")],
    out: Annotated[Path, typer.Option(help="Write the trained checkpoint here, in the layout it came in.")],
    work: Annotated[Path, typer.Option(help="Folder of the run: last.pt, losses.csv, tensorboard.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps of the whole run.")],
    data: Annotated[str, typer.Option(help="nuscenes:/path:version:split, frames:DIR or synthetic.")],
    mask: Annotated[Path | None, typer.Option(help="The mask: what it drops stays exactly zero.")] = None,
    dense: Annotated[bool, typer.Option("--dense", help="Hold nothing; instead of --mask.")] = False,
    lr: Annotated[float, typer.Option(help="Peak learning rate of AdamW.")] = DEFAULT.lr,
    weight_decay: Annotated[float, typer.Option(help="Decoupled weight decay.")] = DEFAULT.weight_decay,
    warmup: Annotated[float, typer.Option(help="Fraction of the steps in which the rate rises.")] = DEFAULT.warmup,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = DEFAULT.clip,
    batch_size: Annotated[int, typer.Option(help="Samples in a batch.")] = DEFAULT.batch_size,
    sweeps: Annotated[int, typer.Option(help="Earlier LiDAR scans added to each sample.")] = DEFAULT.sweeps,
    image_size: ImageSize = None,
    augment: Annotated[bool, typer.Option(help="A training augmentation of every sample, anew each pass.")] = False,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between two saves.")] = DEFAULT.checkpoint_every,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from work/last.pt, bit for bit.")] = False,
    device: Device = DEFAULT.device,
    seed: Annotated[int, typer.Option(help="Seed of the order of the data and of the training.")] = DEFAULT.seed,
    json: Json = False,
) -> None:
    """Train a pruned checkpoint with its mask held: pruned weights are exactly zero after every step."""
    options = FinetuneOptions(
        checkpoint=checkpoint,
        out=out,
        work=work,
        steps=steps,
        mask=mask,
        dense=dense,
        data=data,
        lr=lr,
        weight_decay=weight_decay,
        warmup=warmup,
        clip=clip,
        batch_size=batch_size,
        sweeps=sweeps,
        image_size=image_size,
        augment=augment,
        checkpoint_every=checkpoint_every,
        resume=resume,
        device=device,
        seed=seed,
    )
    with progress_bars(enabled=not json) as progress:
        done = finetune_checkpoint(options, progress)
    show_finetuned(done, as_json=json)


def main(arguments: list[str] | None = None) -> int:
    """The verb as a function: its exit status."""
    return run(app, arguments, stopped="the steps made are in last.pt of --work; --resume goes on")


if __name__ == "__main__":
    sys.exit(main())
