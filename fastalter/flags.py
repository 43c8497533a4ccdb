"""Options that several verbs have, in one wording."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Force = Annotated[
    bool, typer.Option("--force", help="Use a mask of another checkpoint, or one made on synthetic data.")
]
ModelName = Annotated[
    str | None, typer.Option(help="An architecture's name. With CKPT it is inferred from the file's keys.")
]
ImageSize = Annotated[str | None, typer.Option(help="HxW of the images. Default: the model's own.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
