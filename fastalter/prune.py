"""python -m fastalter.prune: a checkpoint and a mask in; the pruned checkpoint, and what it was made from, out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fastalter.cli import run
from fastalter.flags import Force, Json, ModelName
from fastalter.options import parse_min_keep
from fastalter.pruning import PruneOptions, prune_checkpoint, show_pruned
from fastalter.report.progress import progress_bars

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def prune(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint file to prune.", metavar="CKPT")],
    out: Annotated[Path, typer.Option(help="Write the pruned checkpoint here, in CKPT's layout; a .json beside it.")],
    mask: Annotated[Path | None, typer.Option(help="The mask to apply (safetensors).")] = None,
    scores: Annotated[Path | None, typer.Option(help="Or scores (safetensors), to make the mask from.")] = None,
    ratio: Annotated[
        float | None,
        typer.Option(help="With --scores: fraction to remove, in [0, 1). Left out: what the scores are for, else 0.8."),
    ] = None,
    min_keep: Annotated[
        str | None, typer.Option(help="With --scores: the least share (0.01) or count (1) that every layer keeps.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="With --scores of channels, what the ratio is of: channels, parameters or flops.",
            show_default="channels",
        ),
    ] = None,
    round_to: Annotated[
        int | None, typer.Option(help="With --scores of channels: every layer keeps a multiple of 8 or 16.")
    ] = None,
    mask_out: Annotated[Path | None, typer.Option(help="With --scores: write the mask here (safetensors).")] = None,
    model: ModelName = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Set the weights that a mask drops to zero, and write the checkpoint back in the layout it came in."""
    options = PruneOptions(
        checkpoint=checkpoint,
        out=out,
        mask=mask,
        scores=scores,
        ratio=ratio,
        min_keep=parse_min_keep(min_keep),
        budget=budget,
        round_to=round_to,
        mask_out=mask_out,
        model=model,
        force=force,
    )
    with progress_bars(enabled=not json) as progress:
        result = prune_checkpoint(options, progress)
    show_pruned(result, as_json=json)


def main(arguments: list[str] | None = None) -> int:
    """The verb as a function: its exit status."""
    return run(app, arguments)


if __name__ == "__main__":
    sys.exit(main())
