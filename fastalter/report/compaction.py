"""What a compaction made smaller, as tables on stdout."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.table import Table

from fastalter.report.terminal import plain_console, plain_table, print_lines

if TYPE_CHECKING:
    from fastalter.structure.compaction.job import CompactRun


def show_compacted(run: CompactRun, *, as_json: bool) -> None:
    """A run on stdout: as a table, or as one JSON object with the notes and warnings on stderr."""
    print_lines("note", run.notes, stderr=as_json)
    if as_json:
        seconds = {stage: round(value, 4) for stage, value in run.seconds.items()}
        print(json.dumps({**run.record, "seconds": seconds, "written": [str(path) for path in run.written]}))
    else:
        console = plain_console()
        console.print(
            f"{run.record['model']}, {run.record['made_by'].get('method', 'a mask')} at {run.record['ratio']}"
        )
        console.print("", _branches(run), "", sep="\n")
        print_lines("wrote", run.written)
    print_lines("warning", run.warnings, stderr=as_json)


def _branches(run: CompactRun) -> Table:
    table = plain_table(
        None, "branch", "parameters", "after", "%", "channels", "after", "%", text=("branch",), overflow="fold"
    )
    rows = {branch: (*size.parameters, *size.channels) for branch, size in run.sizes.items()}
    total = tuple(map(sum, zip(*rows.values(), strict=True)))
    for branch, numbers in {**rows, "total": total}.items():
        pairs = (numbers[:2], numbers[2:])
        cells = [text for had, has in pairs for text in (f"{had:,}", f"{has:,}", f"{100 * has / max(had, 1):.1f}")]
        table.add_row(branch, *cells, style="bold" if branch == "total" else None)
    return table
