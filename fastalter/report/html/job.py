"""The whole job of the report verb as a function: files in, one HTML file out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fastalter.artifacts import source_sha256
from fastalter.errors import DataError, MaskError
from fastalter.outputs import check_outputs, write_all
from fastalter.report.progress import ProgressFunction

if TYPE_CHECKING:
    from fastalter.criteria import Scores
    from fastalter.masks import Mask
    from fastalter.report.html.page import Features

SAME = {
    "method": "the criterion",
    "settings": "the settings",
    "model": "the model",
    "data": "the data",
    "seed": "the seed",
}
"""What a mask and the scores it is shown with have in common, where both tell."""


@dataclass(frozen=True)
class ReportOptions:
    """What the verb's options say; see `python -m fastalter.report --help`."""

    out: Path
    scores: Path | None = None
    mask: Path | None = None
    checkpoint: Path | None = None
    data: str | None = None
    evaluations: tuple[Path, ...] = ()
    comparison: Path | None = None
    title: str | None = None


@dataclass(frozen=True)
class ReportRun:
    """What came out: the ids of the sections, remarks, the file."""

    sections: list[str]
    notes: list[str] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)


def check_options(options: ReportOptions) -> None:
    """Everything that can be refused without opening a file. Raises a FastalterError naming the option."""
    if options.scores is None and options.comparison is None and not options.evaluations:
        raise DataError("nothing to report: give --scores, --comparison or --evaluation")
    needs: dict[str, tuple[object, str, object]] = {
        "--mask": (options.mask, "--scores", options.scores),
        "--checkpoint": (options.checkpoint, "--scores", options.scores),
        "--data": (options.data, "--checkpoint", options.checkpoint),
    }
    for name, (given, other, needed) in needs.items():
        if given is not None and needed is None:
            raise DataError(f"{name} goes with {other}: give both")
    inputs: dict[str, Path | None] = {
        "--scores": options.scores,
        "--mask": options.mask,
        "the checkpoint": options.checkpoint,
        "--comparison": options.comparison,
    }
    inputs |= {f"--evaluation {path}": path for path in options.evaluations}
    check_outputs({"--out": options.out}, inputs)


def write_report(options: ReportOptions, progress: ProgressFunction = lambda stage, done, total: None) -> ReportRun:
    """Read everything, draw, write. Nothing is written unless everything could be read; same files, same bytes.

    Raises:
        FastalterError: a file that cannot be read, or a mask or checkpoint that is not the scores' own.
    """
    check_options(options)
    from fastalter.report.html.comparisons import read_comparison
    from fastalter.report.html.evaluations import read_evaluations
    from fastalter.report.html.page import Inputs, build, render

    comparison = None if options.comparison is None else read_comparison(options.comparison)
    evaluations = read_evaluations(options.evaluations)
    scores, mask, features, notes = None, None, None, list[str]()
    if options.scores is not None:
        scores, mask = _read_scores(options)
        if options.checkpoint is not None:
            features = _features(options, scores, mask, progress)
            notes += features.notes
    page = build(Inputs(scores, mask, features, comparison, evaluations, options.title))
    text = render(page)
    written = write_all({options.out: lambda path: path.write_text(text, encoding="utf-8")})
    return ReportRun([section.id for section in page.sections], notes, written)


def _read_scores(options: ReportOptions) -> tuple[Scores, Mask | None]:
    from fastalter.criteria import Scores
    from fastalter.masks import Mask

    assert options.scores is not None
    scores = Scores.load(options.scores)
    _check_told(options.scores, scores)
    if options.mask is None:
        return scores, None
    mask = Mask.load(options.mask)
    _check_pair(options, scores, mask)
    return scores, mask


def _check_told(path: Path, scores: Scores) -> None:
    """What the page says of the scores must be in their file."""
    told = scores.metadata
    for key in ("method", "model", "data"):
        if key not in told:
            raise MaskError(f"{path}: it does not say its {key}; score the model again")
    branches, settings = told.get("branches"), told.get("settings", {})
    counts = [branches.get(b) for b in scores.layout.branches] if isinstance(branches, dict) else [None]
    if not all(isinstance(c, dict) and {"parameters", "prunable"} <= set(c) for c in counts):
        raise MaskError(f"{path}: it does not count the weights of its branches; score the model again")
    if not isinstance(settings, dict):
        raise MaskError(f"{path}: its settings are {settings!r}; score the model again")


def _check_pair(options: ReportOptions, scores: Scores, mask: Mask) -> None:
    """The mask must be of these scores: same weights, same checkpoint, same run."""
    if mask.layout.to_json() != scores.layout.to_json():
        raise MaskError(f"{options.mask} and {options.scores} are of different models; give the mask of these scores")
    mine, other = source_sha256(scores.metadata), source_sha256(mask.metadata)
    if mine and other and mine != other:
        raise MaskError(
            f"{options.mask} was made from checkpoint {other[:12]}, {options.scores} from {mine[:12]}; "
            "give the mask of these scores"
        )
    for key, what in SAME.items():
        if key in mask.metadata and key in scores.metadata and mask.metadata[key] != scores.metadata[key]:
            raise MaskError(
                f"{options.mask} is not of {options.scores}: {what} differs ({_brief(mask.metadata[key])}, "
                f"not {_brief(scores.metadata[key])}); give the mask of these scores"
            )


def _brief(value: object) -> str:
    words = str(value)
    return words if len(words) <= 60 else f"{words[:57]}..."


def _features(options: ReportOptions, scores: Scores, mask: Mask | None, progress: ProgressFunction) -> Features:
    """The maps of Figure 3, by the settings that the scores were made with."""
    from fastalter.altermoma import Reactivation
    from fastalter.checkpoint import load_checkpoint
    from fastalter.data import load
    from fastalter.fusion import adapt
    from fastalter.report.html.page import Features
    from fastalter.report.states import feature_states

    assert options.checkpoint is not None
    settings = scores.metadata.get("settings", {})
    size = settings.get("image_size")
    progress("load checkpoint", 0, 1)
    loaded = load_checkpoint(options.checkpoint, image_size=tuple(size) if size else None)
    progress("load checkpoint", 1, 1)
    made_from = source_sha256(scores.metadata)
    if made_from is not None and made_from != loaded.sha256:
        raise MaskError(
            f"{options.scores} was made from checkpoint {made_from[:12]}, not from {options.checkpoint} "
            f"({loaded.sha256[:12]}); give that checkpoint"
        )
    reactivation = Reactivation()  # of a criterion that has none; "lr" may then be something else
    if "reactivation_batches" in settings:
        reactivation = Reactivation(int(settings["reactivation_batches"]), float(settings["lr"]))
    batches = load(
        options.data,
        config=loaded.config,
        batches=max(int(scores.metadata.get("batches", 0)), reactivation.batches),
        batch_size=int(settings.get("batch_size", 2)),
        image_size=loaded.config.camera.image_size,
        sweeps=int(settings.get("sweeps", 0)),
        seed=int(scores.metadata.get("seed", 0)),
    )
    states = feature_states(
        adapt(loaded.model),
        batches,
        mask,
        reactivation=reactivation,
        bn=settings.get("bn", "train"),
        seed=int(scores.metadata.get("seed", 0)),
        progress=progress,
    )
    notes = []
    if batches.description != scores.metadata["data"]:
        notes.append(f"the feature maps are of {batches.description}, the scores of {scores.metadata['data']}")
    first, bounds = batches[0], loaded.config.lidar.point_cloud_range
    return Features(states, first.boxes[0], tuple(bounds), batches.description, first.tokens[:1], reactivation, notes)
