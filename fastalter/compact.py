"""python -m fastalter.compact: a checkpoint and a channel mask in; a physically smaller checkpoint and its plan out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fastalter.cli import run
from fastalter.flags import Force, Json, ModelName
from fastalter.report.compaction import show_compacted
from fastalter.report.progress import progress_bars
from fastalter.structure.compaction.job import CompactOptions, compact_checkpoint

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def compact(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint file to compact.", metavar="CKPT")],
    mask: Annotated[Path, typer.Option(help="The mask of channels (safetensors): of scores by channel.")],
    out: Annotated[
        Path, typer.Option(help="Write the smaller checkpoint here (safetensors); its plan and a record beside it.")
    ],
    fold_bn: Annotated[
        bool, typer.Option("--fold-bn", help="Fold batch norms into the layers before them: for deployment.")
    ] = False,
    model: ModelName = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Cut the channels that a mask drops out of every tensor, and write a checkpoint that all verbs take."""
    options = CompactOptions(checkpoint=checkpoint, mask=mask, out=out, fold_bn=fold_bn, model=model, force=force)
    with progress_bars(enabled=not json) as progress:
        result = compact_checkpoint(options, progress)
    show_compacted(result, as_json=json)


def main(arguments: list[str] | None = None) -> int:
    """The verb as a function: its exit status."""
    return run(app, arguments)


if __name__ == "__main__":
    sys.exit(main())
