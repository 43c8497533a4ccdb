"""python -m recipes.experiment.parents: train the single-sensor detectors and keep their backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recipes.experiment.parents.backbones import BACKBONES, write_backbones
from recipes.tiny_checkpoint import WORK, make_parents


def main(
    work: Annotated[Path, typer.Option(help="Data and training states; what is there is not made again.")] = WORK,
    out: Annotated[Path, typer.Option(help="The safetensors file; its provenance goes beside it.")] = BACKBONES,
) -> None:
    """25 minutes on two cores where nothing is there yet."""
    make_parents(work)
    write_backbones(work, out)


if __name__ == "__main__":
    typer.run(main)
