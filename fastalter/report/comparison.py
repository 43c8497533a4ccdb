"""A comparison as tables on stdout: a row per method, a column per ratio, mean and spread over the seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from fastalter.report.terminal import plain_console, plain_table, print_lines

if TYPE_CHECKING:
    from fastalter.comparison.job import Comparison
    from fastalter.comparison.table import Row

METRICS = {"mean_ap": "mAP", "nd_score": "NDS"}


def show_comparison(comparison: Comparison, *, as_json: bool) -> None:
    """Tables of mAP and NDS after fine-tuning and mAP before, or the document as JSON."""
    from fastalter.comparison.document import document_of
    from fastalter.comparison.table import rows

    print_lines("note", comparison.notes, stderr=as_json)
    if as_json:
        print(json.dumps(document_of(comparison.results)))
        return
    console = plain_console()
    for metric, name in METRICS.items():
        console.print("", _table(f"{name} after fine-tuning", rows(comparison.results, metric)), sep="\n")
    console.print("", _table("mAP before fine-tuning", rows(comparison.results, when="before")), sep="\n")
    print(f"{len(comparison.results)} cells, {comparison.ran} of them run now")
    print_lines("wrote", [comparison.written])


def _table(title: str, found: Sequence[Row]) -> Table:
    ratios = sorted({row.ratio for row in found})
    text = "regime", "method"
    heads = (f"{100 * ratio:g} %" if ratio else "dense" for ratio in ratios)
    table = plain_table(title, *text, *heads, text=text)
    values = {(row.regime, row.method, row.ratio): row for row in found}
    for regime, method in dict.fromkeys((row.regime, row.method) for row in found):
        cells = [values.get((regime, method, ratio)) for ratio in ratios]
        table.add_row(regime, method, *(cell_text(cell) for cell in cells))
    return table


def cell_text(row: Row | None) -> str:
    """ "0.713 +- 0.012 (3)": mean, sample standard deviation, seeds."""
    if row is None:
        return ""
    spread = "" if row.spread is None else f" +- {row.spread:.3f}"
    return f"{row.mean:.3f}{spread} ({len(row.values)})"
