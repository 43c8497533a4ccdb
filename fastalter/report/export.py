"""An export as a table on stdout: a row per file and output, with its difference to torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fastalter.report.terminal import plain_console, plain_table, print_lines

if TYPE_CHECKING:
    from fastalter.exporting.job import Export

TEXT = "file", "inputs", "output"


def show_export(export: Export, *, as_json: bool) -> None:
    """An export on stdout: as a table, or as one JSON object with the notes on stderr."""
    print_lines("note", export.notes, stderr=as_json)
    if as_json:
        print(json.dumps({**export.record, "written": [str(path) for path in export.written]}))
        return
    record = export.record
    table = plain_table(None, *TEXT, "difference to torch", text=TEXT)
    for file, facts in record["files"].items():
        inputs = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in facts["inputs"].items())
        for place, (name, output) in enumerate(facts["outputs"].items()):
            table.add_row(file if not place else "", inputs if not place else "", name, f"{output['difference']:.1e}")
    console = plain_console()
    console.print(f"{record['model']}: ONNX opset {record['opset']}, float32, one sample", table, "", sep="\n")
    print_lines(
        "note", [f"differences of onnxruntime, relative to torch's maximum; up to {record['tolerance']:.0e} passes"]
    )
    print_lines("wrote", export.written)
