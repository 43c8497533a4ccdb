"""The summary of a scoring run as tables on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, OverflowMethod
from rich.table import Table

from fastalter.report.summary import BranchCount, LayerCount, branch_counts, layer_counts, summary, total_count

if TYPE_CHECKING:
    from fastalter.masks import Mask
    from fastalter.pipeline import ScoreRun

WORST = 10
"""Rows of the table of layers that lose most."""
NAMED = 20
"""How many layers a warning names."""
PLAIN_WIDTH = 120
"""Width of the tables where stdout is no terminal."""
_TEXT = "branch", "layer", "stage"


def show_run(run: ScoreRun, *, as_json: bool) -> None:
    """A run on stdout: as tables, or as one JSON object with the notes and warnings on stderr."""
    warnings = [*run.warnings, *lost_layers(layer_counts(run.mask))]
    print_lines("note", run.notes, stderr=as_json)
    if as_json:
        print(json.dumps(summary(run.scores.metadata, run.mask, run.seconds)))
    else:
        print_summary(run.scores.metadata, run.mask, run.seconds)
        print_lines("wrote", run.written)
    print_lines("warning", warnings, stderr=as_json)


def print_summary(metadata: Mapping[str, Any], mask: Mask, seconds: Mapping[str, float]) -> None:
    """What was scored, what stays where, which layers lose most, and what took the time."""
    console = plain_console()
    counts, layers = branch_counts(mask, metadata["branches"]), layer_counts(mask)
    total = total_count(counts)
    stay = f"the {total.kept:,} highest scores stay, down to {mask.threshold:.6g}" if total.kept else "nothing stays"
    if "n_m" in mask.metadata:
        parts, (n, m) = len(mask) - len(mask.metadata["dense"]), mask.metadata["n_m"]
        stay = f"{total.kept:,} weights stay, {n} of every {m} inputs in {parts} of {len(mask)} weights"
    tables = [_branches(counts, total), _worst(layers, mask.unit), _seconds(seconds)]
    console.print(f"{metadata['model']}, {metadata['method']} on {metadata['data']}, seed {metadata['seed']}")
    console.print(f"ratio {mask.ratio}{_of_budget(mask)}: {stay}")
    if mask.metadata.get("reached"):
        console.print(f"compacted, it is without {_shares(mask.metadata['reached'])}")
    for table in tables:
        console.print("", table, sep="\n")


def _of_budget(mask: Mask) -> str:
    return f" of the {mask.metadata['budget']}" if "budget" in mask.metadata else ""


def _shares(reached: Mapping[str, float]) -> str:
    return ", ".join(f"{100 * share:.1f} % of the {name}" for name, share in reached.items())


def print_lines(kind: str, lines: Sequence[object], *, stderr: bool = False) -> None:
    """Notes, warnings or paths, a line each, to stdout or to stderr."""
    for line in lines:
        print(f"{kind}: {line}", file=sys.stderr if stderr else sys.stdout)


def plain_console() -> Console:
    """Stdout for tables: as wide as the terminal, or PLAIN_WIDTH where it is none; no text is taken for markup."""
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False, markup=False)


def plain_table(
    title: str | None, *columns: str, text: Collection[str], overflow: OverflowMethod = "ellipsis"
) -> Table:
    """A table without lines; the columns named in `text` are set to the left, those of numbers to the right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in text else "right", overflow=overflow)
    return table


def _table(title: str, *columns: str) -> Table:
    return plain_table(title, *columns, text=_TEXT, overflow="fold")


def _branches(counts: Sequence[BranchCount], total: BranchCount) -> Table:
    table = _table("Branches", "branch", "parameters", "prunable", "kept", "kept %")
    for count in (*counts, total):
        cells = (f"{count.parameters:,}", f"{count.prunable:,}", f"{count.kept:,}", f"{100 * count.fraction:.1f}")
        table.add_row(count.name, *cells, style="bold" if count is total else None)
    return table


def _worst(layers: Sequence[LayerCount], unit: str) -> Table:
    worst = sorted(layers, key=lambda layer: layer.fraction)[:WORST]
    table = _table(f"Layers that lose most ({len(worst)} of {len(layers)})", "layer", "branch", "shape", unit, "kept %")
    for layer in worst:
        shape = "x".join(map(str, layer.shape))
        table.add_row(layer.name, layer.branch, shape, f"{layer.size:,}", f"{100 * layer.fraction:.1f}")
    return table


def _seconds(seconds: Mapping[str, float]) -> Table:
    whole = sum(seconds.values())
    table = _table("Seconds", "stage", "s", "%")
    for stage, value in seconds.items():
        table.add_row(stage, f"{value:.2f}", f"{100 * value / whole:.0f}" if whole else "0")
    table.add_row("total", f"{whole:.2f}", "100", style="bold")
    return table


def lost_layers(layers: Sequence[LayerCount]) -> list[str]:
    """A line for the layers that keep no weight, naming them; empty if there are none."""
    names = [layer.name for layer in layers if not layer.kept]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (
        [f"{len(names)} of {len(layers)} layers lose every weight: {', '.join(names[:NAMED])}{more}"] if names else []
    )
