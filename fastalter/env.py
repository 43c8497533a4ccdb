"""python -m fastalter.env: versions, devices, compiled libraries, and which implementation serves each op, and why."""

from __future__ import annotations

import sys

import typer

from fastalter.cli import run
from fastalter.flags import Json

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def env(json: Json = False) -> None:
    """Say what fastalter runs on here, and which implementation of each op serves CPU and CUDA tensors."""
    from fastalter.report.environment import gather, show

    show(gather(), as_json=json)


def main(arguments: list[str] | None = None) -> int:
    """The verb as a function: its exit status."""
    return run(app, arguments)


if __name__ == "__main__":
    sys.exit(main())
