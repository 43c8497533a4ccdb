"""The whole job of the profile verb as a function: one network or two in, what each part of them costs out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastalter.errors import CheckpointError, DataError
from fastalter.options import check_device, check_least, parse_image_size
from fastalter.report.progress import ProgressFunction

if TYPE_CHECKING:
    from fastalter.data import Batch
    from fastalter.models.bevfusion import BEVFusion
    from fastalter.profiling.measure import Times
    from fastalter.profiling.parts import Part

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
    """Of one part, of a branch, or of the whole.

    parameters  learned ones
    flops       of one forward pass, and by kind (`profiling.flops.KINDS`)
    seconds     median of the rounds; spread: half of the interquartile range
    memory      bytes at their highest while it works, beside weights and inputs; None where it cannot be told
    """

    branch: str
    part: str
    parameters: int
    flops: int
    kinds: dict[str, int]
    seconds: float
    spread: float
    memory: int | None


@dataclass(frozen=True)
class Network:
    """One profiled network.

    parts     in the order of the branches, then what lies between the parts
    branches  name -> all parts of it: seconds and spread are those of their sum, round by round; memory is the largest
    facts     model, data, image_size, batch_size, points of the LiDAR, device, threads, rounds
    """

    name: str
    parts: list[Cost]
    branches: dict[str, Cost]
    whole: Cost
    facts: dict[str, Any]


@dataclass(frozen=True)
class Profile:
    """The networks in the order that they were given in, and the loader's remarks."""

    networks: list[Network]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """What --json prints."""
        return asdict(self)


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
    from fastalter.profiling.flops import count_kinds
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

    parts = parts_of(adapt(model))
    modules = {part.path: part.module for part in parts}
    kinds = count_kinds(model, run)  # first: what libraries keep from their first call on is no part of the memory
    memory = peak_memory(run, modules, device)
    total = options.warmup + options.rounds
    progress(f"profile {name}", 0, total)
    times = measure_times(
        run,
        modules,
        rounds=options.rounds,
        warmup=options.warmup,
        device=device,
        progress=lambda done: progress(f"profile {name}", done, total),
    )
    whole = _Sum(
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        {kind: of[""] for kind, of in kinds.items()},
        times[""],
        memory.get(""),
    )
    sums = {
        part: _Sum(
            part.parameters, {k: of[part.path] for k, of in kinds.items()}, times[part.path], memory.get(part.path)
        )
        for part in parts
        if part.path in times
    }
    return _network(name, whole, sums, _facts(options, model, batch))


@dataclass(frozen=True)
class _Sum:
    """What is measured of a part, in a form that adds up."""

    parameters: int
    kinds: dict[str, int]
    times: Times
    memory: int | None

    def plus(self, other: _Sum, sign: int = 1) -> _Sum:
        """Both together; memory is the larger. With sign=-1, self without other, whose memory is not told."""
        both = [memory for memory in (self.memory, other.memory) if memory is not None]
        return _Sum(
            self.parameters + sign * other.parameters,
            {kind: flops + sign * other.kinds[kind] for kind, flops in self.kinds.items()},
            self.times.plus(other.times, sign),
            max(both) if both and sign > 0 else None,
        )

    def cost(self, branch: str, part: str) -> Cost:
        flops = sum(self.kinds.values())
        return Cost(branch, part, self.parameters, flops, self.kinds, self.times.median, self.times.spread, self.memory)


def _network(name: str, whole: _Sum, parts: dict[Part, _Sum], facts: dict[str, Any]) -> Network:
    """The parts, what lies between them, and the branches; what lies between counts as fusion."""
    from fastalter.fusion.adapt import FUSION

    between = reduce(lambda rest, part: rest.plus(part, -1), parts.values(), whole)
    branches: dict[str, _Sum] = {}
    for branch, own in [*((part.branch, own) for part, own in parts.items()), (FUSION, between)]:
        branches[branch] = branches[branch].plus(own) if branch in branches else own
    return Network(
        name,
        [*(own.cost(part.branch, part.path) for part, own in parts.items()), between.cost(FUSION, OUTSIDE)],
        {branch: own.cost(branch, "") for branch, own in branches.items()},
        whole.cost("", ""),
        facts,
    )


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
