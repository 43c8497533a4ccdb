"""python -m fastalter.report: scores, mask, evaluations and comparisons in; one self-contained HTML file out."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Annotated

import typer

from fastalter.cli import run
from fastalter.flags import Json
from fastalter.report.html import ReportOptions, write_report
from fastalter.report.progress import progress_bars
from fastalter.report.terminal import print_lines

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def report(
    out: Annotated[Path, typer.Option(help="Write the report here (HTML).")],
    scores: Annotated[Path | None, typer.Option(help="Scores that score wrote (safetensors).")] = None,
    mask: Annotated[Path | None, typer.Option(help="The mask of these scores (safetensors).")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The checkpoint of these scores: shows its features from above. Takes a minute.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="With --checkpoint: data as score takes it; synthetic.")] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(help="evaluation.json or metrics_summary.json of evaluate --out; may be given several times."),
    ] = None,
    comparison: Annotated[Path | None, typer.Option(help="comparison.json that compare wrote.")] = None,
    title: Annotated[str | None, typer.Option(help="The page's heading. Left out: model, method and ratio.")] = None,
    json: Json = False,
) -> None:
    """Write a report that opens in any browser without a network: each section is there when its data is given."""
    options = ReportOptions(
        out=out,
        scores=scores,
        mask=mask,
        checkpoint=checkpoint,
        data=data,
        evaluations=tuple(evaluation or ()),
        comparison=comparison,
        title=title,
    )
    with progress_bars(enabled=not json) as progress:
        result = write_report(options, progress)
    print_lines("note", result.notes, stderr=json)
    if json:
        print(json_module.dumps({"sections": result.sections, "written": [str(path) for path in result.written]}))
    else:
        print_lines("wrote", result.written)


def main(arguments: list[str] | None = None) -> int:
    """The verb as a function: its exit status."""
    return run(app, arguments)


if __name__ == "__main__":
    sys.exit(main())
