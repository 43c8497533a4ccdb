"""python -m fastalter.export: a checkpoint's dense parts as ONNX files, checked in onnxruntime against torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fastalter.cli import run
from fastalter.exporting.job import ExportOptions, export_checkpoint
from fastalter.flags import ImageSize, Json, ModelName
from fastalter.report.export import show_export
from fastalter.report.progress import progress_bars

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="The checkpoint file: dense, pruned or compacted.", metavar="CKPT")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the ONNX files and export.json; made if it is not there.")],
    parts: Annotated[
        str | None,
        typer.Option(help="Of camera,fuser,decoder,head, with commas; fuser and decoder are one file. Default: all."),
    ] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset, 18 to 23. Default: 18.")] = None,
    model: ModelName = None,
    image_size: ImageSize = None,
    cameras: Annotated[int, typer.Option(help="Images of a sample.")] = ExportOptions.cameras,
    seed: Annotated[int, typer.Option(help="Seed of the inputs that the files are checked on.")] = ExportOptions.seed,
    json: Json = False,
) -> None:
    """Write what CUDA-BEVFusion deploys as ONNX, under its names, each file held against torch."""
    options = ExportOptions(
        checkpoint=checkpoint,
        out=out,
        parts=parts,
        opset=opset,
        model=model,
        image_size=image_size,
        cameras=cameras,
        seed=seed,
    )
    with progress_bars(enabled=not json) as progress:
        done = export_checkpoint(options, progress)
    show_export(done, as_json=json)


def main(arguments: list[str] | None = None) -> int:
    """The verb as a function: its exit status."""
    return run(app, arguments)


if __name__ == "__main__":
    sys.exit(main())
