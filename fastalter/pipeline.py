"""The whole job of the score verb as a function: checkpoint -> model -> scores -> mask -> files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from fastalter.errors import CheckpointError, MaskError, ScoringError
from fastalter.options import check_device, check_least, parse_image_size
from fastalter.outputs import check_outputs, write_all
from fastalter.report.progress import ProgressFunction
from fastalter.report.summary import branch_counts, layer_counts

if TYPE_CHECKING:
    from fastalter.criteria import Scores
    from fastalter.data import Batches
    from fastalter.masks import Mask
    from fastalter.models import BEVFusionConfig
    from fastalter.models.bevfusion import BEVFusion

PLOT_FORMATS = ("png", "pdf", "svg")


@dataclass(frozen=True)
class ScoreOptions:
    """What the verb's options say; see `python -m fastalter.score --help`."""

    checkpoint: Path | None = None
    model: str | None = None
    data: str | None = None
    method: str = "altermoma"
    settings: tuple[str, ...] = ()
    batches: int = 5
    batch_size: int = 2
    image_size: str | None = None
    sweeps: int = 0
    lr: float = 1e-4
    alpha: float = 1.0
    beta: float = 1.0
    reri_data: str = "paired"
    bn: str = "train"
    ratio: float = 0.8
    granularity: str = "weight"
    budget: str | None = None
    min_keep: float | None = None
    round_to: int | None = None
    n_m: str | None = None
    out: Path | None = None
    mask: Path | None = None
    plot: Path | None = None
    device: str = "cpu"
    seed: int = 0
    direct: bool = False
    terms: bool = False


@dataclass(frozen=True)
class ScoreRun:
    """What came out. `notes`: remarks of the checkpoint loader; `warnings`: of the scoring; `written`: the files."""

    scores: Scores
    mask: Mask
    seconds: dict[str, float]
    notes: list[str]
    warnings: list[str]
    written: list[Path] = field(default_factory=list)


def check_options(options: ScoreOptions) -> None:
    """Everything that can be refused without opening a file. Raises a FastalterError naming the option."""
    if options.checkpoint is None and options.model is None:
        raise CheckpointError("nothing to score: give a checkpoint file, or --model bevfusion-tiny for random weights")
    _check_selection(options)
    check_least(options, batches=1, batch_size=1, sweeps=0, seed=0)
    for name in ("lr", "alpha", "beta"):
        if not math.isfinite(getattr(options, name)):
            raise ScoringError(f"{_flag(name)} {getattr(options, name)}: give a finite number")
    if options.lr < 0:
        raise ScoringError(f"--lr {options.lr:g}: give 0 or more")
    parse_image_size(options.image_size)
    if options.plot is not None:
        _choice(f"the ending of --plot {options.plot}", options.plot.suffix.lstrip("."), PLOT_FORMATS)
    outputs = {"--out": options.out, "--mask": options.mask, "--plot": options.plot}
    check_outputs(outputs, {"the checkpoint": options.checkpoint})
    _check_choices(options)


def _check_selection(options: ScoreOptions) -> None:
    """What the mask is to be like."""
    if not 0 <= options.ratio < 1:
        raise MaskError(f"--ratio {options.ratio:g} is outside [0, 1): give the fraction to remove, such as 0.8")
    wanted = ratio_for(None, options.n_m)
    if options.n_m is not None and not math.isclose(options.ratio, wanted):
        raise MaskError(f"--ratio {options.ratio:g}: --n-m {options.n_m} prunes {wanted:g}; leave --ratio out")
    if options.n_m is not None and options.min_keep is not None:
        raise MaskError(f"--min-keep: with --n-m {options.n_m} every layer keeps its share anyway; leave it out")
    of_channels = {"--budget": options.budget, "--round-to": options.round_to}
    given = [name for name, value in of_channels.items() if value is not None]
    if options.granularity != "channel" and given:
        raise MaskError(f"{given[0]} goes with --granularity channel: single weights have no channels to count")
    if options.granularity == "channel" and options.n_m is not None:
        raise MaskError(f"--n-m {options.n_m} is for single weights; leave it or --granularity channel out")


def _check_choices(options: ScoreOptions) -> None:
    """Last, because the lists of choices come with torch."""
    from fastalter.altermoma import ReriData
    from fastalter.criteria import CRITERIA
    from fastalter.criteria.problem import Granularity, check_granularity
    from fastalter.criteria.settings import bound_settings
    from fastalter.fusion.preserve import Bn
    from fastalter.masks.select import floor_count
    from fastalter.structure.budget import MULTIPLES, Budget

    _choice("--method", options.method, CRITERIA)
    bound_settings(options.method, CRITERIA[options.method], parse_settings(options.settings))
    _choice("--granularity", options.granularity, get_args(Granularity))
    check_granularity(options.method, CRITERIA, options.granularity)
    if options.budget is not None:
        _choice("--budget", options.budget, get_args(Budget))
    if options.round_to is not None:
        _choice("--round-to", str(options.round_to), list(map(str, MULTIPLES)))
    if options.min_keep is not None:
        floor_count(1, options.min_keep)
    _choice("--reri-data", options.reri_data, get_args(ReriData))
    _choice("--bn", options.bn, get_args(Bn))
    check_device(options.device)


def parse_n_m(text: str) -> tuple[int, int]:
    """(2, 4) of "2:4". Raises MaskError."""
    match = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", text)
    if not match or not int(match[1]) < int(match[2]) <= 64:
        raise MaskError(f"--n-m {text}: give how many of how many inputs stay, such as 2:4, of at most 64")
    return int(match[1]), int(match[2])


def ratio_for(ratio: float | None, n_m: str | None) -> float:
    """The ratio that was asked for: as given, else that of the pattern, else the default."""
    if ratio is not None:
        return ratio
    if n_m is None:
        return ScoreOptions.ratio
    n, m = parse_n_m(n_m)
    return 1 - n / m


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """{"lr": 0.01} of ("lr=0.01",): numbers, true and false as JSON has them, all else text. Raises ScoringError."""
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ScoringError(f"--set {text}: give NAME=VALUE, such as --set lr=0.01")
        if name in settings:
            raise ScoringError(f"--set {name}: given twice; give it once")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ScoringError(f"{name} is {value!r}: give one of {', '.join(choices)}")


def score_checkpoint(options: ScoreOptions, progress: ProgressFunction = lambda stage, done, total: None) -> ScoreRun:
    """Load, score, mask, write. Nothing is written unless everything worked; raises FastalterError kinds only."""
    check_options(options)
    import fastalter
    from fastalter.altermoma import Clock, ReriData
    from fastalter.criteria.problem import Granularity
    from fastalter.fusion.preserve import Bn

    clock = Clock()
    with clock.step("load checkpoint" if options.checkpoint else "build model", progress):
        model, origin, notes = _load_model(options)
    with clock.step("open data", progress):
        batches = _load_batches(options, model.config)
    scores = fastalter.score_model(
        model.to(options.device),
        batches,
        method=options.method,
        settings=parse_settings(options.settings),
        ratio=options.ratio,
        granularity=cast(Granularity, options.granularity),
        reactivation=fastalter.Reactivation(batches=options.batches, lr=options.lr),
        alpha=options.alpha,
        beta=options.beta,
        reri_data=cast(ReriData, options.reri_data),
        bn=cast(Bn, options.bn),
        direct=options.direct,
        keep_terms=options.terms,
        seed=options.seed,
        progress=progress,
        clock=clock,
    )
    scores.metadata.update(origin)
    size = model.config.camera.image_size
    scores.metadata["settings"].update(batch_size=options.batch_size, image_size=list(size), sweeps=options.sweeps)
    with clock.step("mask", progress):
        mask = _mask(options, scores)
    mask.metadata.update(origin)
    remarks = data_remarks(scores.metadata)
    run = ScoreRun(
        scores,
        mask,
        clock.seconds,
        [*notes, *dense_notes(mask), *raised_notes(mask)],
        [*scores.metadata["warnings"], *remarks],
    )
    with clock.step("write", progress):
        run.written.extend(write_all(_writers(options, run)))
    return run


def _mask(options: ScoreOptions, scores: Scores) -> Mask:
    from fastalter.structure.budget import Budget

    return scores.mask(
        options.ratio,
        min_keep=options.min_keep,
        n_m=None if options.n_m is None else parse_n_m(options.n_m),
        budget=cast(Budget | None, options.budget),
        round_to=options.round_to,
    )


def dense_notes(mask: Mask) -> list[str]:
    """Which weights an N:M mask leaves dense: one line for every reason."""
    names: dict[str, list[str]] = {}
    for name, reason in mask.metadata.get("dense", {}).items():
        names.setdefault(reason, []).append(name)
    return [
        f"{len(found)} of {len(mask)} weights stay dense, {found[0]}{' ...' if len(found) > 1 else ''}: {reason}"
        for reason, found in names.items()
    ]


def raised_notes(mask: Mask) -> list[str]:
    """Which layers keep more than their scores alone would leave them, in a line."""
    raised, least = mask.metadata.get("raised"), mask.metadata.get("min_keep")
    if not raised:
        return []
    floor = "the one channel that every layer keeps" if least is None else f"--min-keep {least}"
    return [f"{len(raised)} of {len(mask)} layers were raised to {floor}: {raised[0]}{' ...' if raised[1:] else ''}"]


def data_remarks(metadata: Mapping[str, Any]) -> list[str]:
    """What to say of synthetic data: nothing where it is the embedded checkpoint's own kind."""
    from fastalter.assets import provenance

    if not metadata["synthetic"] or metadata.get("checkpoint", {}).get("sha256") == provenance()["sha256"]:
        return []
    return ["scored on synthetic data, which this model was not trained for: for a mask to use, give its own --data"]


def _load_model(options: ScoreOptions) -> tuple[BEVFusion, dict[str, Any], list[str]]:
    """The model, what the artifacts say of it, and the loader's notes."""
    from fastalter import models

    size = parse_image_size(options.image_size)
    if options.checkpoint is None:
        name = str(options.model)
        config = models.config_of(name)
        model = models.build(config.with_image_size(*size) if size else config, seed=options.seed)
        return model, {"model": f"{name} (random weights, seed {options.seed})"}, []
    from fastalter.checkpoint import load_checkpoint

    loaded = load_checkpoint(options.checkpoint, model=options.model, image_size=size)
    origin = {"path": str(loaded.path), "sha256": loaded.sha256, "layout": loaded.layout}
    return loaded.model, {"model": loaded.config.name, "checkpoint": origin}, list(loaded.notes)


def _load_batches(options: ScoreOptions, config: BEVFusionConfig) -> Batches:
    from fastalter.data import load

    return load(
        options.data,
        batches=options.batches,
        batch_size=options.batch_size,
        image_size=parse_image_size(options.image_size) or config.camera.image_size,
        sweeps=options.sweeps,
        config=config,
        seed=options.seed,
    )


def _writers(options: ScoreOptions, run: ScoreRun) -> Mapping[Path, Callable[[Path], object]]:
    writers: dict[Path, Callable[[Path], object]] = {}
    if options.out is not None:
        writers[options.out] = run.scores.save
    if options.mask is not None:
        writers[options.mask] = run.mask.save
    if options.plot is not None:
        from fastalter.report.plot import save_plot

        metadata = run.scores.metadata
        counts, layers = branch_counts(run.mask, metadata["branches"]), layer_counts(run.mask)
        of = f" of the {run.mask.metadata['budget']}" if "budget" in run.mask.metadata else ""
        title = f"Kept at ratio {options.ratio}{of}: {metadata['model']}, {metadata['method']} on {metadata['data']}"
        kind = options.plot.suffix.lstrip(".")
        writers[options.plot] = partial(save_plot, layers=layers, branches=counts, title=title, kind=kind)
    return writers
