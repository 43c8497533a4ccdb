"""The whole job of the prune verb as a function: checkpoint and mask (or scores) -> pruned checkpoint, its record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fastalter.artifacts import sha256, source_sha256
from fastalter.errors import MaskError
from fastalter.outputs import check_outputs, write_all
from fastalter.report.progress import ProgressFunction
from fastalter.report.summary import layer_counts, summary
from fastalter.report.terminal import lost_layers, print_lines, print_summary
from fastalter.version import __version__

if TYPE_CHECKING:
    from fastalter.checkpoint import Loaded
    from fastalter.masks import Mask
    from fastalter.models.bevfusion import BEVFusion
    from fastalter.structure.budget import Budget

DEFAULT_RATIO = 0.8
TOLD = ("method", "model", "data", "synthetic", "seed", "checkpoint")
"""What a mask should say of itself."""
UNTOLD = "not recorded"


@dataclass(frozen=True)
class PruneOptions:
    """What the verb's options say; see `python -m fastalter.prune --help`."""

    checkpoint: Path
    out: Path
    mask: Path | None = None
    scores: Path | None = None
    ratio: float | None = None
    min_keep: float | None = None
    budget: str | None = None
    round_to: int | None = None
    mask_out: Path | None = None
    model: str | None = None
    force: bool = False

    @property
    def source(self) -> Path | None:
        """The file that says which weights stay."""
        return self.mask or self.scores

    @property
    def record(self) -> Path:
        """Where the record of the pruning goes: beside the pruned file."""
        return self.out.with_name(f"{self.out.name}.json")


@dataclass(frozen=True)
class PruneRun:
    """What came out. `record` is what the JSON beside the pruned file says; `notes` and `warnings` are for the user."""

    mask: Mask
    record: dict[str, Any]
    branches: dict[str, dict[str, int]]
    seconds: dict[str, float]
    notes: list[str]
    warnings: list[str]
    written: list[Path] = field(default_factory=list)


def check_options(options: PruneOptions) -> None:
    """Everything that can be refused without opening a file. Raises a FastalterError naming the option."""
    if (options.mask is None) == (options.scores is None):
        raise MaskError("give either --mask, or --scores with --ratio: one of the two says which weights stay")
    of_scores = {
        "--ratio": options.ratio,
        "--min-keep": options.min_keep,
        "--budget": options.budget,
        "--round-to": options.round_to,
        "--mask-out": options.mask_out,
    }
    given = [name for name, value in of_scores.items() if value is not None]
    if options.mask is not None and given:
        raise MaskError(f"{given[0]} goes with --scores; the mask of --mask is used as it is")
    if options.ratio is not None and not 0 <= options.ratio < 1:
        raise MaskError(f"--ratio {options.ratio:g} is outside [0, 1): give the fraction to remove, such as 0.8")
    if options.min_keep is not None:
        from fastalter.masks.select import floor_count

        floor_count(1, options.min_keep)
    outputs = {"--out": options.out, "the record beside --out:": options.record, "--mask-out": options.mask_out}
    inputs = {"the checkpoint": options.checkpoint, "--mask": options.mask, "--scores": options.scores}
    check_outputs(outputs, inputs)


def prune_checkpoint(options: PruneOptions, progress: ProgressFunction = lambda stage, done, total: None) -> PruneRun:
    """Load, check that the mask is this checkpoint's, prune, write. Nothing is written unless everything worked.

    The pruned file has the layout, the keys and the extras of the one that came in. What it was made from goes into a
    JSON beside it, from which `finetune` can start.

    Raises:
        FastalterError: kinds only; the line says what to do, and where --force would go on.
    """
    check_options(options)
    from fastalter.altermoma import Clock
    from fastalter.checkpoint import load_checkpoint
    from fastalter.masks import prune_model

    clock = Clock()
    with clock.step("read mask" if options.mask else "make mask", progress):
        mask = _mask(options)
    with clock.step("load checkpoint", progress):
        loaded = load_checkpoint(options.checkpoint, model=options.model)
    with clock.step("prune", progress):
        try:
            prune_model(loaded.model, mask).remove()
        except MaskError as error:
            raise MaskError(f"{options.source}: {error}") from error
    assert options.source is not None
    forced = check_origin(options.source, mask, loaded, force=options.force)
    run = PruneRun(
        mask=mask,
        record=_record(options, mask, loaded, forced),
        branches=branches_of(loaded.model, mask),
        seconds=clock.seconds,
        notes=[*loaded.notes, *_notes(options, mask)],
        warnings=[*(f"{reason} (--force)" for reason in forced), *lost_layers(layer_counts(mask))],
    )
    with clock.step("write", progress):
        run.written.extend(write_all(_writers(options, loaded, run)))
    return run


def show_pruned(run: PruneRun, *, as_json: bool) -> None:
    """A run on stdout: as tables, or as one JSON object with the notes and warnings on stderr."""
    metadata = {name: run.mask.metadata.get(name, UNTOLD) for name in TOLD} | {"branches": run.branches}
    print_lines("note", run.notes, stderr=as_json)
    if as_json:
        written = [str(path) for path in run.written]
        print(json.dumps({**summary(metadata, run.mask, run.seconds), "record": run.record, "written": written}))
    else:
        print_summary(metadata, run.mask, run.seconds)
        print_lines("wrote", run.written)
    print_lines("warning", run.warnings, stderr=as_json)


def branches_of(model: BEVFusion, mask: Mask) -> dict[str, dict[str, int]]:
    """Branch -> learned parameters of the model in it, and how many of them the mask covers."""
    from fastalter.fusion import adapt, find_weights
    from fastalter.fusion.weights import branch_counts

    fusion = adapt(model)
    counts = branch_counts(fusion, find_weights(fusion))
    covered = mask.layout.entries
    return {
        branch: {**count, "prunable": sum(entry.size for entry in covered if entry.branch == branch)}
        for branch, count in counts.items()
    }


def _mask(options: PruneOptions) -> Mask:
    from fastalter.criteria import Scores
    from fastalter.masks import Mask

    if options.mask is not None:
        return Mask.load(options.mask)
    assert options.scores is not None
    scores = Scores.load(options.scores)
    ratio = options.ratio
    if ratio is None:
        ratio = scores.metadata.get("for_ratio", DEFAULT_RATIO)  # some scores are good for one ratio alone
    budget = cast("Budget | None", options.budget)
    try:
        return scores.mask(ratio, min_keep=options.min_keep, budget=budget, round_to=options.round_to)
    except MaskError as error:
        raise MaskError(f"{options.scores}: {error}") from error


def check_origin(source: Path, mask: Mask, loaded: Loaded, *, force: bool) -> list[str]:
    """What --force passes over, a line each, where a mask is not known to be for this checkpoint.

    Raises:
        MaskError: there is such a thing, and no --force.
    """
    reasons = origin_doubts(source, mask, loaded)
    for reason, advice in reasons.items():
        if not force:
            raise MaskError(f"{reason}: {advice}")
    return list(reasons)


def origin_doubts(source: Path, mask: Mask, loaded: Loaded) -> dict[str, str]:
    """Why a mask may not be for this checkpoint -> what to do about it."""
    from fastalter.assets import provenance

    made_from = source_sha256(mask.metadata)
    reasons = {}
    if made_from is not None and made_from != loaded.sha256:
        told = mask.metadata["checkpoint"].get("path", "another file")
        reasons[
            f"{source} was made from {told} (sha256 {made_from[:12]}), not from {loaded.path} "
            f"(sha256 {loaded.sha256[:12]})"
        ] = "give that checkpoint, or --force to use it all the same"
    if mask.metadata.get("synthetic") and loaded.sha256 != provenance()["sha256"]:
        reasons[f"{source} was scored on synthetic data, which {loaded.path} was not trained for"] = (
            "score it with --data of its own, or give --force to use it all the same"
        )
    return reasons


def _notes(options: PruneOptions, mask: Mask) -> list[str]:
    notes = []
    untold = [name for name in TOLD if name not in mask.metadata and name != "checkpoint"]
    if untold:
        notes.append(f"{options.source} does not say its {', '.join(untold)}")
    if source_sha256(mask.metadata) is None:
        notes.append(
            f"{options.source} does not say which checkpoint it was made from: only names and shapes are checked"
        )
    raised = mask.metadata.get("raised")
    if raised:
        floor = "--min-keep" if mask.metadata.get("min_keep") is not None else "the one channel that every layer keeps"
        notes.append(f"{len(raised)} of {len(mask)} layers were raised to {floor}; {options.record} names them")
    if options.scores is not None and options.mask_out is None:
        notes.append("the mask itself is not kept; finetune needs it: give --mask-out to write it")
    return notes


def _record(options: PruneOptions, mask: Mask, loaded: Loaded, forced: list[str]) -> dict[str, Any]:
    """The JSON beside the pruned file, but for the sums of files that are yet to be written."""
    import torch

    sources = {"mask": options.mask, "scores": options.scores}
    return {
        "kind": "fastalter pruned",
        "fastalter_version": __version__,
        "torch_version": str(torch.__version__),
        "file": {"path": str(options.out), "sha256": None},
        "checkpoint": {
            "path": str(loaded.path),
            "sha256": loaded.sha256,
            "layout": loaded.layout,
            "sparse_layout": loaded.sparse_layout,
        },
        "model": loaded.config.name,
        **{
            name: None if path is None else {"path": str(path), "sha256": sha256(path)}
            for name, path in sources.items()
        },
        "mask_bits_sha256": hashlib.sha256(mask.bits.numpy().tobytes()).hexdigest(),
        "ratio": mask.ratio,
        "unit": mask.unit,
        "prunable": mask.layout.size,
        "kept": mask.kept_total,
        "made_by": mask.metadata,
        "forced": forced,
    }


def _writers(options: PruneOptions, loaded: Loaded, run: PruneRun) -> Mapping[Path, Callable[[Path], object]]:
    """In order: the record comes last, because it holds the sums of the files before it."""

    def save_model(path: Path) -> None:
        loaded.save(path)
        run.record["file"]["sha256"] = sha256(path)

    def save_mask(path: Path) -> None:
        run.mask.save(path)
        run.record["mask"] = {"path": str(options.mask_out), "sha256": sha256(path)}

    def save_record(path: Path) -> None:
        path.write_text(json.dumps(run.record, indent=1) + "\n", encoding="utf-8")

    writers: dict[Path, Callable[[Path], object]] = {options.out: save_model}
    if options.mask_out is not None:
        writers[options.mask_out] = save_mask
    return {**writers, options.record: save_record}
