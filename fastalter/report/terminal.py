"""The summary of a scoring run as tables on stdout."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastalter.report.summary import BranchCount, LayerCount, total_count

WORST = 10
PLAIN_WIDTH = 120
"""Width of the tables where stdout is no terminal."""
_TEXT = "branch", "layer", "stage"


def print_summary(
    metadata: Mapping[str, Any],
    counts: Sequence[BranchCount],
    layers: Sequence[LayerCount],
    threshold: float,
    seconds: Mapping[str, float],
    ratio: float,
) -> None:
    """What was scored, what stays where, which layers lose most, and what took the time."""
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)
    total = total_count(list(counts))
    console.print(Text(f"{metadata['model']}, {metadata['method']} on {metadata['data']}, seed {metadata['seed']}"))
    console.print(_branches(counts, total))
    line = f"ratio {ratio:g}: the {total.kept:,} weights with the highest scores stay, down to {threshold:.6g}"
    console.print(line if total.kept else f"ratio {ratio:g}: nothing stays")
    console.print(_worst(layers))
    console.print(_seconds(seconds))


def print_lines(kind: str, lines: Sequence[str], *, stderr: bool = False) -> None:
    """Notes and warnings, a line each, to stdout or to stderr."""
    for line in lines:
        print(f"{kind}: {line}", file=sys.stderr if stderr else sys.stdout)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in _TEXT else "right", overflow="fold")
    return table


def _branches(counts: Sequence[BranchCount], total: BranchCount) -> Table:
    table = _table("\nBranches", "branch", "parameters", "prunable", "kept", "kept %")
    for count in (*counts, total):
        cells = (f"{count.parameters:,}", f"{count.prunable:,}", f"{count.kept:,}", f"{100 * count.fraction:.1f}")
        table.add_row(count.name, *cells, style="bold" if count is total else None)
    return table


def _worst(layers: Sequence[LayerCount]) -> Table:
    worst = sorted(layers, key=lambda layer: layer.fraction)[:WORST]
    table = _table(
        f"\nLayers that lose most ({len(worst)} of {len(layers)})", "layer", "branch", "shape", "weights", "kept %"
    )
    for layer in worst:
        shape = "x".join(map(str, layer.shape))
        table.add_row(layer.name, layer.branch, shape, f"{layer.size:,}", f"{100 * layer.fraction:.1f}")
    return table


def _seconds(seconds: Mapping[str, float]) -> Table:
    whole = sum(seconds.values())
    table = _table("\nSeconds", "stage", "s", "%")
    for stage, value in seconds.items():
        table.add_row(stage, f"{value:.2f}", f"{100 * value / whole:.0f}" if whole else "0")
    table.add_row("total", f"{whole:.2f}", "100", style="bold")
    return table
