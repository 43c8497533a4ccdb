"""The whole job of the evaluate verb as a function: a checkpoint or a results file in, official numbers out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastalter.errors import DataError
from fastalter.options import check_device, check_folder, check_least, parse_image_size
from fastalter.report.progress import ProgressFunction

if TYPE_CHECKING:
    from fastalter.data.nuscenes import NuScenesFrames
    from fastalter.models import BEVFusionConfig
    from fastalter.tasks.detection.evaluate import DetectionResult

WHOLE = "none"
"""The state in which no sensor is dropped; always evaluated."""
SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class EvaluateOptions:
    """What the verb's options say; see `python -m fastalter.evaluate --help`."""

    checkpoint: Path | None = None
    results: Path | None = None
    data: str = SYNTHETIC
    model: str | None = None
    drop: tuple[str, ...] = ()
    batch_size: int = 8
    sweeps: int = 0
    image_size: str | None = None
    scenes: int = 20
    out: Path | None = None
    work: Path | None = None
    device: str = "cpu"
    seed: int = 0


@dataclass
class Evaluation:
    """What came out.

    facts    what was evaluated on what: model, checkpoint or results file, data, synthetic, split, frames, sweeps,
             image_size
    states   dropped sensor ("none" first) -> its numbers
    reused   states that an earlier call had finished
    """

    facts: dict[str, Any]
    states: dict[str, DetectionResult] = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain form: what --json prints and out/evaluation.json holds."""
        return {**self.facts, "states": {name: result.to_dict() for name, result in self.states.items()}}


def evaluate_checkpoint(
    options: EvaluateOptions, progress: ProgressFunction = lambda stage, done, total: None
) -> Evaluation:
    """Evaluate every state that `out` does not hold yet, from the same file on the same data.

    Raises:
        FastalterError: an option that cannot be; a file, split or sensor that is not there; results with samples
            missing. States finished before it are kept.
    """
    check_options(options)
    from fastalter.evaluation.keep import make_folder, write_evaluation

    if options.out is not None:
        make_folder(options.out)
    evaluation = _of_results(options) if options.results is not None else _of_model(options, progress)
    if evaluation.facts["synthetic"]:
        evaluation.notes.append("synthetic data: the numbers compare models with each other and say nothing of roads")
    if options.out is not None:
        evaluation.written.append(write_evaluation(options.out / "evaluation.json", evaluation.to_dict()))
    return evaluation


def check_options(options: EvaluateOptions) -> None:
    """Everything that can be refused without opening a file. Raises a FastalterError naming the option."""
    from fastalter.data.drop import check_droppable

    if (options.checkpoint is None) == (options.results is None):
        raise DataError("give a checkpoint file to evaluate, or --results with a results file; one of the two")
    check_least(options, batch_size=1, sweeps=0, scenes=1, seed=0)
    for sensor in options.drop:
        if sensor != WHOLE:
            check_droppable(sensor)
    if options.results is not None and options.drop:
        raise DataError("--drop: a results file holds what its model found; drop sensors with the checkpoint itself")
    if options.results is not None and options.data == SYNTHETIC:
        raise DataError("--results: name the data that it is for, as --data nuscenes:/path:version:split")
    parse_image_size(options.image_size)
    check_folder("--out", options.out)
    check_folder("--work", options.work)
    check_device(options.device)


def _of_results(options: EvaluateOptions) -> Evaluation:
    from fastalter.tasks.detection.evaluate import evaluate_results

    assert options.results is not None
    frames = _open(options)
    folder = options.out / "results" if options.out is not None else None
    result = evaluate_results(options.results, frames, folder=folder)
    facts = {"model": None, "results": str(options.results), **_data_facts(frames, options)}
    return Evaluation(facts, {WHOLE: result})


def _of_model(options: EvaluateOptions, progress: ProgressFunction) -> Evaluation:
    from fastalter.checkpoint import load_checkpoint

    assert options.checkpoint is not None
    size = parse_image_size(options.image_size)
    loaded = load_checkpoint(options.checkpoint, model=options.model, image_size=size)
    model = loaded.model.to(options.device)
    origin = {"path": str(loaded.path), "sha256": loaded.sha256, "layout": loaded.layout}
    with _frames(options, loaded.config, progress) as frames:
        facts = {"model": loaded.config.name, "checkpoint": origin, **_data_facts(frames, options)}
        facts["image_size"] = list(loaded.config.camera.image_size)
        evaluation = Evaluation(facts, notes=list(loaded.notes))
        for state in dict.fromkeys((WHOLE, *options.drop)):
            _evaluate_state(evaluation, model, frames, state, options, progress)
    return evaluation


def _evaluate_state(
    evaluation: Evaluation,
    model: Any,
    frames: NuScenesFrames,
    state: str,
    options: EvaluateOptions,
    progress: ProgressFunction,
) -> None:
    from fastalter.evaluation.keep import facts_of, read_state, write_state
    from fastalter.evaluation.model import evaluate_model

    folder = options.out / state if options.out is not None else None
    key = facts_of(evaluation.facts, frames, state)
    kept = read_state(folder, key) if folder is not None else None
    if kept is not None:
        evaluation.states[state] = kept
        evaluation.reused.append(state)
        return
    evaluation.states[state] = evaluate_model(
        model,
        frames,
        batch_size=options.batch_size,
        drop=None if state == WHOLE else state,
        folder=folder,
        progress=lambda stage, done, total: progress(f"{stage} ({state} dropped)", done, total),
    )
    if folder is not None:
        write_state(folder, key, evaluation.states[state])


def _open(options: EvaluateOptions) -> NuScenesFrames:
    from fastalter.data import open_frames
    from fastalter.data.nuscenes import NuScenesFrames

    frames = open_frames(options.data, sweeps=options.sweeps, keep_unseen=True)
    if not isinstance(frames, NuScenesFrames):
        raise DataError(f"--data {options.data}: the official metric needs nuscenes:/path:version:split, or synthetic")
    return frames


@contextmanager
def _frames(options: EvaluateOptions, config: BEVFusionConfig, progress: ProgressFunction) -> Iterator[NuScenesFrames]:
    if options.data != SYNTHETIC:
        yield _open(options)
        return
    from fastalter.data.nuscenes import NuScenesFrames
    from fastalter.data.synthetic.tables import VAL, VERSION
    from fastalter.evaluation.synthetic import synthetic_dataset

    with synthetic_dataset(
        config.camera.image_size, options.scenes, options.sweeps, options.seed, options.work, progress
    ) as root:
        yield NuScenesFrames(root, VERSION, VAL, options.sweeps, keep_unseen=True)


def _data_facts(frames: NuScenesFrames, options: EvaluateOptions) -> dict[str, Any]:
    from fastalter.data.synthetic.tables import VERSION

    made = options.data == SYNTHETIC
    data = f"synthetic: {options.scenes} scenes, seed {options.seed}" if made else options.data
    return {
        "data": data,
        "synthetic": frames.version == VERSION,
        "split": frames.split,
        "frames": len(frames),
        "sweeps": options.sweeps,
    }
