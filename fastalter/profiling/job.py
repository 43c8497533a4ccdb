"""The whole job of the profile verb as a function: one network or two in, what each part of them costs out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastalter.errors import CheckpointError, DataError
from fastalter.options import check_device, check_least, parse_image_size
from fastalter.report.progress import ProgressFunction

if TYPE_CHECKING:
    from fastalter.data import Batch
    from fastalter.models.bevfusion import BEVFusion

OUTSIDE = "(between the parts)"
"""What a forward pass does outside of every part."""


@dataclass(frozen=True)
class ProfileOptions:
    """What the verb's options say; see `python -m fastalter.profile --help`."""

    checkpoints: tuple[Path, ...] = ()
    model: str | None = None
    data: str | None = None
    batch_size: int = 1
    image_size: str | None = None
    sweeps: int = 0
    rounds: int = 10
    warmup: int = 2
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True)
class Cost:
    """Of one part, or of the whole: learned parameters, FLOPs of one forward pass, seconds (median, half of the
    interquartile range)."""

    branch: str
    part: str
    parameters: int
    flops: int
    seconds: float
    spread: float


@dataclass(frozen=True)
class Network:
    """One profiled network.

    parts   in the order of the branches, then what lies between the parts
    memory  bytes that a forward pass needs at its highest beside weights and inputs; None where it cannot be told
    facts   model, data, image_size, batch_size, points of the LiDAR, device, threads, rounds
    """

    name: str
    parts: list[Cost]
    whole: Cost
    memory: int | None
    facts: dict[str, Any]

    @property
    def branches(self) -> dict[str, Cost]:
        """The parts' sums by branch; their medians are added and no spread is told (0)."""
        sums: dict[str, Cost] = {}
        for part in self.parts:
            before = sums.get(part.branch, Cost(part.branch, "", 0, 0, 0.0, 0.0))
            sums[part.branch] = Cost(
                part.branch,
                "",
                before.parameters + part.parameters,
                before.flops + part.flops,
                before.seconds + part.seconds,
                0.0,
            )
        return sums

    def to_dict(self) -> dict[str, Any]:
        """Plain form, ready for JSON."""
        return {**asdict(self), "branches": {name: asdict(cost) for name, cost in self.branches.items()}}


@dataclass(frozen=True)
class Profile:
    """The networks in the order that they were given in, and the loader's remarks."""

    networks: list[Network]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """What --json prints."""
        return {"networks": [network.to_dict() for network in self.networks], "notes": self.notes}


def profile_checkpoint(
    options: ProfileOptions, progress: ProgressFunction = lambda stage, done, total: None
) -> Profile:
    """Profile every network on the first batch of the same data, in eval mode, the forward pass alone.

    Raises:
        FastalterError: an option that cannot be, a file that cannot be read.
    """
    check_options(options)
    networks, notes = [], []
    for place in options.checkpoints or (None,):
        name, model, remarks = _load(options, place)
        networks.append(_profile(options, name, model, progress))
        notes += remarks
    return Profile(networks, notes)


def check_options(options: ProfileOptions) -> None:
    """Everything that can be refused without opening a file. Raises a FastalterError naming the option."""
    if not options.checkpoints and options.model is None:
        raise CheckpointError(
            "nothing to profile: give a checkpoint file, or --model bevfusion-tiny for random weights"
        )
    if len(options.checkpoints) > 2:
        raise DataError(f"{len(options.checkpoints)} checkpoints: give one, or two to stand side by side")
    check_least(options, batch_size=1, sweeps=0, rounds=1, warmup=0, seed=0)
    parse_image_size(options.image_size)
    check_device(options.device)


def _load(options: ProfileOptions, place: Path | None) -> tuple[str, BEVFusion, list[str]]:
    """Its name in the tables, the model, and the loader's notes."""
    size = parse_image_size(options.image_size)
    if place is None:
        from fastalter import models

        config = models.config_of(str(options.model))
        return config.name, models.build(config.with_image_size(*size) if size else config, options.seed), []
    from fastalter.checkpoint import load_checkpoint

    loaded = load_checkpoint(place, model=options.model, image_size=size)
    return place.name, loaded.model, list(loaded.notes)


def _profile(options: ProfileOptions, name: str, model: BEVFusion, progress: ProgressFunction) -> Network:
    import torch

    from fastalter.data import load
    from fastalter.fusion import adapt
    from fastalter.profiling.flops import count_flops
    from fastalter.profiling.measure import measure_times, peak_memory
    from fastalter.profiling.parts import parts_of

    device = torch.device(options.device)
    model = model.to(device).eval()
    batch = load(
        options.data,
        config=model.config,
        batches=1,
        batch_size=options.batch_size,
        image_size=model.config.camera.image_size,
        sweeps=options.sweeps,
        seed=options.seed,
    )[0].to(device)

    def run() -> None:
        model(batch)

    memory = peak_memory(run, device)
    flops = count_flops(model, run)
    parts = parts_of(adapt(model))
    total = options.warmup + options.rounds
    progress(f"profile {name}", 0, total)
    times = measure_times(
        run,
        {part.path: part.module for part in parts},
        rounds=options.rounds,
        warmup=options.warmup,
        device=device,
        progress=lambda done: progress(f"profile {name}", done, total),
    )
    costs = [
        Cost(p.branch, p.path, p.parameters, flops[p.path], times[p.path].median, times[p.path].spread)
        for p in parts
        if p.path in times
    ]
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = Cost("", "", parameters, flops[""], times[""].median, times[""].spread)
    return Network(name, [*costs, _between(whole, costs)], whole, memory, _facts(options, model, batch))


def _between(whole: Cost, parts: list[Cost]) -> Cost:
    """What the whole has and the parts do not; seconds are a difference of medians, at least 0."""
    from fastalter.fusion.adapt import FUSION

    seconds = max(whole.seconds - sum(part.seconds for part in parts), 0.0)
    parameters = whole.parameters - sum(part.parameters for part in parts)
    return Cost(FUSION, OUTSIDE, parameters, whole.flops - sum(part.flops for part in parts), seconds, 0.0)


def _facts(options: ProfileOptions, model: BEVFusion, batch: Batch) -> dict[str, Any]:
    import torch

    return {
        "model": model.config.name,
        "data": options.data or "synthetic",
        "image_size": list(model.config.camera.image_size),
        "batch_size": len(batch),
        "points": sum(len(points) for points in batch.points),
        "device": options.device,
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
    }
