"""The whole job of the compact verb as a function: a checkpoint and a channel mask in, a smaller checkpoint out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastalter.artifacts import sha256
from fastalter.errors import MaskError
from fastalter.outputs import check_outputs, write_all
from fastalter.report.progress import ProgressFunction
from fastalter.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from fastalter.checkpoint import Loaded
    from fastalter.data import Batch
    from fastalter.models.bevfusion import BEVFusion
    from fastalter.models.config import BEVFusionConfig
    from fastalter.structure.compaction.plan import CompactionPlan
    from fastalter.structure.groups import ChannelGroups
    from fastalter.structure.mask import ChannelMask


@dataclass(frozen=True)
class CompactOptions:
    """What the verb's options say; see `python -m fastalter.compact --help`."""

    checkpoint: Path
    mask: Path
    out: Path
    fold_bn: bool = False
    model: str | None = None
    force: bool = False

    @property
    def plan(self) -> Path:
        """Where the plan goes: small.plan.json beside small.safetensors."""
        return self.out.with_name(f"{self.out.stem}.plan.json")

    @property
    def record(self) -> Path:
        """Where the record of the compaction goes: beside the compacted file."""
        return self.out.with_name(f"{self.out.name}.json")


@dataclass(frozen=True)
class Size:
    """Of one branch, before and after. A channel is a channel group: an attention head counts as one."""

    parameters: tuple[int, int]
    channels: tuple[int, int]


@dataclass(frozen=True)
class CompactRun:
    """What came out.

    sizes    by branch, in the order of the branches
    left     batch norm's path -> why it was not folded; empty without --fold-bn
    record   what the JSON beside the compacted file says
    """

    model: BEVFusion
    plan: CompactionPlan
    sizes: dict[str, Size]
    left: dict[str, str]
    record: dict[str, Any]
    seconds: dict[str, float]
    notes: list[str]
    warnings: list[str]
    written: list[Path] = field(default_factory=list)


def compact_checkpoint(
    options: CompactOptions, progress: ProgressFunction = lambda stage, done, total: None
) -> CompactRun:
    """Load, check that the mask is this checkpoint's, cut, fold if asked to, write: all files or none.

    Raises:
        FastalterError: kinds only; the line says what to do, and where --force would go on.
    """
    check_outputs(
        {"--out": options.out, "the plan beside --out:": options.plan, "the record beside --out:": options.record},
        {"the checkpoint": options.checkpoint, "--mask": options.mask},
    )
    from fastalter.altermoma import Clock
    from fastalter.checkpoint import load_checkpoint
    from fastalter.structure.compaction.compact import compact_model, plan_of
    from fastalter.structure.compaction.fold import fold_norms

    clock = Clock()
    with clock.step("read mask", progress):
        mask = _mask(options)
    with clock.step("load checkpoint", progress):
        loaded = load_checkpoint(options.checkpoint, model=options.model)
    if loaded.plan is not None and loaded.plan.folds:
        raise MaskError(f"{options.checkpoint}: batch norms are folded into its layers: compact before folding")
    with clock.step("compact", progress):
        try:
            plan, small = plan_of(loaded.model, mask), compact_model(loaded.model, mask)
        except MaskError as error:
            raise MaskError(f"{options.mask}: {error}") from error
        plan = plan if loaded.plan is None else loaded.plan.then(plan)
    forced, notes = _origin(options, mask, loaded)
    left: dict[str, str] = {}
    if options.fold_bn:
        with clock.step("fold norms", progress):
            folded = fold_norms(small, lambda model: model(probe(loaded.config)), plan)
            plan, left = folded.plan, folded.left
        notes.append(f"{len(plan.folds)} batch norms are folded into the layers before them")
    sizes = sizes_of(loaded.model, small, mask.groups, mask.flat)
    run = CompactRun(
        model=small,
        plan=plan,
        sizes=sizes,
        left=left,
        record=_record(options, mask, loaded, plan, sizes, left, forced),
        seconds=clock.seconds,
        notes=[*loaded.notes, *notes],
        warnings=[*(f"{reason} (--force)" for reason in forced), *_warnings(plan, left)],
    )
    with clock.step("write", progress):
        run.written.extend(write_all(_writers(options, run)))
    return run


def probe(config: BEVFusionConfig) -> Batch:
    """A random batch of one camera: what the modules are called with, and in which order, is that of any other."""
    from fastalter.data.example import example_batch

    batch = example_batch(config, batch_size=1)
    names = ("images", "lidar2image", "camera2lidar", "intrinsics", "image_aug")
    return replace(batch, **{name: getattr(batch, name)[:, :1] for name in names})


def sizes_of(model: BEVFusion, small: BEVFusion, groups: ChannelGroups, kept: Tensor) -> dict[str, Size]:
    """Branch -> learned parameters and channel groups, before and after; kept: bool [G]."""
    from fastalter.fusion import adapt, find_weights
    from fastalter.fusion.weights import branch_counts
    from fastalter.structure.compaction.planner import revived

    before, after = (branch_counts(fusion, find_weights(fusion)) for fusion in (adapt(model), adapt(small)))
    stay = revived(groups, kept)
    channels = dict.fromkeys(before, (0, 0))
    for entry in groups.layout.entries:
        had, has = channels.get(entry.branch, (0, 0))
        inside = stay[entry.offset : entry.offset + entry.size]
        channels[entry.branch] = had + entry.size, has + int(inside.sum())
    return {
        branch: Size((count["parameters"], after[branch]["parameters"]), channels[branch])
        for branch, count in before.items()
    }


def _mask(options: CompactOptions) -> ChannelMask:
    from fastalter.masks import Mask
    from fastalter.structure.mask import ChannelMask

    mask = Mask.load(options.mask)
    if not isinstance(mask, ChannelMask):
        raise MaskError(
            f"{options.mask} is a mask of single weights: compaction removes channels; score with --granularity "
            "channel, or keep the zeros with prune"
        )
    return mask


def _origin(options: CompactOptions, mask: ChannelMask, loaded: Loaded) -> tuple[list[str], list[str]]:
    """(what --force passed over, notes). Where all that goes is zero already, the mask was this network's.

    Raises:
        MaskError: the mask may not be for this checkpoint, and no --force.
    """
    from fastalter.finetuning.job import zero_remarks
    from fastalter.pruning import check_origin, origin_doubts

    if (
        not options.force
        and origin_doubts(options.mask, mask, loaded)
        and not zero_remarks(loaded.model, mask.weights())
    ):
        return [], [
            f"all that {options.mask} drops is zero in {options.checkpoint} already: it was pruned by this mask"
        ]
    return check_origin(options.mask, mask, loaded, force=options.force), []


def _warnings(plan: CompactionPlan, left: Mapping[str, str]) -> list[str]:
    found = [f"{norm} is not folded: {reason}" for norm, reason in left.items()]
    if plan.emptied:
        names = f"{len(plan.emptied)} sets of channels lose every one: {_first(plan.emptied)}"
        found.append(f"{names}; one channel of each stays, its weights zero")
    return found


def _first(names: list[str], shown: int = 20) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _record(
    options: CompactOptions,
    mask: ChannelMask,
    loaded: Loaded,
    plan: CompactionPlan,
    sizes: Mapping[str, Size],
    left: Mapping[str, str],
    forced: list[str],
) -> dict[str, Any]:
    """The JSON beside the compacted file, but for the sums of files that are yet to be written."""
    import torch

    return {
        "kind": "fastalter compacted",
        "fastalter_version": __version__,
        "torch_version": str(torch.__version__),
        "file": {"path": str(options.out), "sha256": None},
        "plan": {"path": str(options.plan), "sha256": None},
        "checkpoint": {"path": str(loaded.path), "sha256": loaded.sha256, "layout": loaded.layout},
        "model": loaded.config.name,
        "mask": {"path": str(options.mask), "sha256": sha256(options.mask)},
        "ratio": mask.ratio,
        "branches": {branch: asdict(size) for branch, size in sizes.items()},
        "emptied": plan.emptied,
        "folded": len(plan.folds),
        "not_folded": dict(left),
        "made_by": mask.metadata,
        "forced": forced,
    }


def _writers(options: CompactOptions, run: CompactRun) -> Mapping[Path, Callable[[Path], object]]:
    """In order: the record comes last, because it holds the sums of the files before it."""
    from fastalter.checkpoint import save_compacted

    def save_model(path: Path) -> None:
        save_compacted(path, run.model, run.plan)
        run.record["file"]["sha256"] = sha256(path)

    def save_plan(path: Path) -> None:
        run.plan.save(path)
        run.record["plan"]["sha256"] = sha256(path)

    def save_record(path: Path) -> None:
        path.write_text(json.dumps(run.record, indent=1) + "\n", encoding="utf-8")

    return {options.out: save_model, options.plan: save_plan, options.record: save_record}
