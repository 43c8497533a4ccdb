"""A profile as tables on stdout: a row per part and branch, two networks side by side with their ratios."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.table import Table

from fastalter.report.terminal import plain_console, plain_table, print_lines

if TYPE_CHECKING:
    from fastalter.profiling.job import Network, Profile


TEXT = "branch", "part"
NOTES = (
    "FLOPs are two per multiply-accumulate; norms, activations and resampling are not counted. dense: with weights; "
    "attention: products of activations; sparse: sparse convolutions, by pairs of active sites",
    "+- is half the distance between the quartiles; MB: the most there is beside weights and inputs while a part works",
)


def show_profile(profile: Profile, *, as_json: bool) -> None:
    """A profile on stdout: as tables, or as one JSON object with the notes on stderr."""
    print_lines("note", profile.notes, stderr=as_json)
    if as_json:
        print(json.dumps(profile.to_dict()))
        return
    console = plain_console()
    for network in profile.networks:
        console.print(_heading(network), _parts(network), "", sep="\n")
    if len(profile.networks) == 2:
        console.print(_beside(*profile.networks), "", sep="\n")
    print_lines("note", NOTES)


def _heading(network: Network) -> str:
    facts = network.facts
    height, width = facts["image_size"]
    batch = f"{facts['batch_size']} x {height}x{width} images of each camera, {facts['points']:,} LiDAR points"
    place = f"{facts['device']}, {facts['threads']} threads" if facts["device"] == "cpu" else facts["device"]
    name = network.name if network.name == facts["model"] else f"{network.name}: {facts['model']}"
    return f"{name}, forward in eval mode on {batch} ({facts['data']}); {place}"


def _parts(network: Network) -> Table:
    kinds = tuple(network.whole.kinds)
    table = plain_table(None, *TEXT, "parameters", "GFLOPs", *kinds, "ms", "+-", "% of time", "MB", text=TEXT)
    for part in [*network.parts, None, *network.branches.values(), network.whole]:
        if part is None:
            table.add_row()
            continue
        name = part.part or ("whole" if part is network.whole else "all")
        flops = [_giga(count) for count in (part.flops, *(part.kinds[kind] for kind in kinds))]
        share = f"{100 * part.seconds / network.whole.seconds:.0f}"
        memory = "-" if part.memory is None else f"{part.memory / 1e6:,.0f}"
        time = (f"{1e3 * part.seconds:.1f}", f"{1e3 * part.spread:.1f}", share)
        table.add_row(part.branch, name, f"{part.parameters:,}", *flops, *time, memory)
    return table


def _beside(one: Network, other: Network) -> Table:
    table = plain_table(f"{other.name} / {one.name}", "branch", "parameters", "FLOPs", "time", "memory", text=TEXT)
    pairs = [(name, cost, other.branches[name]) for name, cost in one.branches.items() if name in other.branches]
    for name, a, b in [*pairs, ("whole", one.whole, other.whole)]:
        of = ((a.parameters, b.parameters), (a.flops, b.flops), (a.seconds, b.seconds), (a.memory, b.memory))
        table.add_row(name, *(f"{after / before:.3f}" if before and after is not None else "-" for before, after in of))
    return table


def _giga(flops: int) -> str:
    return f"{flops / 1e9:,.2f}" if flops else "-"
