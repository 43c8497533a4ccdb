"""python -m bench.structure: what removing channels takes, and what it saves, in one run on one machine.

Two questions about a network at half of its FLOPs (--ratio 0.5). How long does compaction take, and how long beside it
torch-pruning's prune step on the same dense network (`bench.structure_peer`)? And what share of the dense network's
time do its dense parts take afterwards, side by side: camera trunk, neck and depth network; the view transform's
convolutions; fuser and decoder; head? They are the modules that `fastalter.export` writes, on drawn inputs.

The weights are random, or the embedded checkpoint's for bevfusion-tiny; so are the scores, unless --scores magnitude
says otherwise: times depend on how many channels stay, not on which. Before anything is timed, the compacted network is
held against the masked one. Dense and compacted alternate, and medians are shown. Writes bench/results/structure.json.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from bench.bulk import made_with, seconds, write_result
from bench.structure_peer import compare_with_torch_pruning
from fastalter.assets import EMBEDDED
from fastalter.checkpoint import load_checkpoint
from fastalter.data import example_batch
from fastalter.data.batch import Batch
from fastalter.exporting import OnnxPart, onnx_parts
from fastalter.fusion import adapt
from fastalter.masks import masked
from fastalter.models import build
from fastalter.models.bevfusion import BEVFusion
from fastalter.profiling import count_flops
from fastalter.structure.arena import magnitudes
from fastalter.structure.budget import select_channels
from fastalter.structure.compaction.compact import compact_model
from fastalter.structure.grouping.find import find_groups
from fastalter.structure.groups import ChannelGroups
from fastalter.structure.mask import ChannelMask
from fastalter.training.recalibrate import recalibrate

RESULT = Path(__file__).parent / "results" / "structure.json"
NETWORKS = ("bevfusion-mit-swint-voxelnet", "bevfusion-mit-resnet101-voxelnet", "bevfusion-tiny")
TOLERANCE = 1e-4
"""Compacted against masked, relative to the heatmap's range: float32 sums of other lengths, a network deep."""
MOST_SECONDS, MOST_OF_PEER, MOST_TIME = 1.0, 1 / 3, 0.6
"""What is asked: compaction's seconds, its share of torch-pruning's step, and the dense parts' share of the time."""


def network(name: str, seed: int) -> tuple[BEVFusion, Batch]:
    """The model in eval mode and a sample: the embedded checkpoint for its architecture, else random weights.

    Random weights get the norms' statistics of the sample: with those of no data, signals fade on their way through.
    """
    model = load_checkpoint(EMBEDDED).model if name == "bevfusion-tiny" else build(name, seed)
    batch = example_batch(model.config, batch_size=1, seed=seed)
    if name != "bevfusion-tiny":
        recalibrate(model, [batch])
    return model.eval(), batch


def scores_of(kind: str, groups: ChannelGroups, model: BEVFusion, seed: int) -> torch.Tensor:
    """[G]: uniform random numbers, or magnitudes."""
    if kind == "magnitude":
        return magnitudes(groups, model)
    return torch.rand(groups.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def difference(model: BEVFusion, small: BEVFusion, mask: ChannelMask, batch: Batch) -> float:
    """Of the dense heatmap, relative to its range. Raises AssertionError above TOLERANCE."""
    with masked(model, mask.weights()):
        expected = model(batch)["dense_heatmap"]
    lowest, highest = expected.aminmax()
    found = float((small(batch)["dense_heatmap"] - expected).abs().max() / (highest - lowest))
    assert found <= TOLERANCE, f"compacted differs from masked by {found:.1e}"
    return found


def measure_parts(model: BEVFusion, small: BEVFusion, rounds: int, seed: int) -> dict[str, Any]:
    """File -> FLOPs and median seconds, dense and compacted; and of all together the shares that are left."""
    pairs = list(zip(onnx_parts(model), onnx_parts(small), strict=True))
    runs = {dense.file: (_run(dense, seed), _run(cut, seed)) for dense, cut in pairs}
    flops = {
        dense.file: [count_flops(part.reference, _run(part, seed))[""] for part in (dense, cut)] for dense, cut in pairs
    }
    times: dict[str, tuple[list[float], list[float]]] = {file: ([], []) for file in runs}
    for round_ in range(rounds + 1):  # the first warms up
        for file, both in runs.items():
            for place, run in enumerate(both):
                took = seconds(run)
                if round_:
                    times[file][place].append(took)
    whole = [[sum(of) for of in zip(*(times[file][place] for file in runs), strict=True)] for place in (0, 1)]
    return {
        "parts": {file: {"flops": flops[file], "seconds": [median(of) for of in times[file]]} for file in runs},
        "share_of_flops": sum(of[1] for of in flops.values()) / sum(of[0] for of in flops.values()),
        "share_of_time": median(cut / dense for dense, cut in zip(*whole, strict=True)),
    }


def _run(part: OnnxPart, seed: int) -> Callable[[], object]:
    inputs = part.draw(seed)

    def run() -> object:
        with torch.no_grad():
            return part.reference(*inputs)

    return run


def measure(name: str, *, ratio: float, scores: str, round_to: int | None, rounds: int, seed: int) -> dict[str, Any]:
    """Of one network: see the module's docstring."""
    model, batch = network(name, seed)
    found: list[ChannelGroups] = []
    finding = seconds(lambda: found.append(find_groups(adapt(model), batch)))
    (groups,) = found
    score = scores_of(scores, groups, model, seed)
    mask = select_channels(score, groups, ratio, budget="flops", round_to=round_to)
    small = compact_model(model, mask)
    checked = difference(model, small, mask, batch)
    return {
        "groups": groups.size,
        "parameters": [sum(p.numel() for p in net.parameters() if p.requires_grad) for net in (model, small)],
        "removed": mask.metadata["reached"],
        "difference": checked,
        "seconds": {
            "find_groups": finding,
            "compact_model": median(seconds(lambda: compact_model(model, mask)) for _ in range(rounds)),
        },
        **measure_parts(model, small, rounds, seed),
        "torch_pruning": compare_with_torch_pruning(model, ratio=ratio, rounds=rounds),
    }


def targets(found: dict[str, Any]) -> dict[str, bool]:
    """Which of what is asked a network reached; nothing about a peer that did not run."""
    met = {
        "compaction": found["seconds"]["compact_model"] < MOST_SECONDS,
        "time": found["share_of_time"] <= MOST_TIME,
    }
    peer = found["torch_pruning"]
    if "error" not in peer:
        met["peer"] = peer["seconds"]["compact_model"] <= MOST_OF_PEER * peer["seconds"]["step"]
    return met


def show(result: dict[str, Any]) -> None:
    """Print the result as tables."""
    console = Console(width=130)
    for name, found in result["networks"].items():
        table = Table(
            "part", "GFLOPs", "compacted", "ms", "compacted", "share", title=f"{name}, {result['ratio']:.0%} off"
        )
        for file, row in found["parts"].items():
            flops, times = (
                [f"{scale * value:.2f}" for value in row[key]] for key, scale in (("flops", 1e-9), ("seconds", 1e3))
            )
            table.add_row(file, *flops, *times, f"{row['seconds'][1] / row['seconds'][0]:.2f}")
        console.print(table)
        shares = f"{found['share_of_time']:.2f} of the time at {found['share_of_flops']:.2f} of the FLOPs"
        console.print(f"dense parts: {shares}; compact_model {found['seconds']['compact_model']:.2f} s")
        console.print(_peer(found["torch_pruning"]), f"asked for and met: {found['met']}\n", sep="\n")
    console.print(made_with(result["provenance"]))


def _peer(peer: dict[str, Any]) -> str:
    if "error" in peer:
        return f"torch-pruning: {peer['error']}"
    took = ", ".join(f"{name} {value:.2f} s" for name, value in peer["seconds"].items())
    return f"on {peer['network']}, torch-pruning {peer['version']} beside us: {took}"


def main(
    networks: Annotated[list[str] | None, typer.Option("--network", help="An architecture; may be repeated.")] = None,
    ratio: Annotated[float, typer.Option(help="Share of the FLOPs that goes.")] = 0.5,
    scores: Annotated[str, typer.Option(help="random or magnitude.")] = "random",
    round_to: Annotated[
        int, typer.Option(help="Channels of a layer are a multiple of this: 8, 16, or 0 for any.")
    ] = 16,
    rounds: Annotated[int, typer.Option(help="Rounds; the median is shown.")] = 7,
    seed: Annotated[int, typer.Option(help="Of weights, scores and inputs.")] = 0,
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = RESULT,
) -> None:
    settings: dict[str, Any] = {
        "ratio": ratio,
        "scores": scores,
        "round_to": round_to or None,
        "rounds": rounds,
        "seed": seed,
    }
    found = {name: measure(name, **settings) for name in networks or NETWORKS}
    for row in found.values():
        row["met"] = targets(row)
    show(write_result(out, {**settings, "networks": found}))


if __name__ == "__main__":
    typer.run(main)
