"""The whole job of the finetune verb as a function: a pruned checkpoint and its mask in, a trained one out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastalter.artifacts import sha256
from fastalter.errors import DataError, MaskError
from fastalter.options import check_device, check_folder, check_least, parse_image_size
from fastalter.outputs import check_outputs, write_all
from fastalter.report.progress import ProgressFunction
from fastalter.version import __version__

if TYPE_CHECKING:
    from torch import nn

    from fastalter.checkpoint import Loaded
    from fastalter.masks import Mask
    from fastalter.training import TrainOptions, TrainResult

SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class FinetuneOptions:
    """What the verb's options say; see `python -m fastalter.finetune --help`."""

    checkpoint: Path
    out: Path
    work: Path
    steps: int
    data: str
    mask: Path | None = None
    dense: bool = False
    lr: float = 1e-4
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip: float = 10.0
    batch_size: int = 4
    sweeps: int = 0
    image_size: str | None = None
    augment: bool = False
    checkpoint_every: int = 100
    resume: bool = False
    device: str = "cpu"
    seed: int = 0

    @property
    def provenance(self) -> Path:
        """Where the JSON of what made the checkpoint goes."""
        return self.out.with_name(f"{self.out.name}.json")


@dataclass
class Finetuned:
    """What came out.

    facts    the provenance document, as written beside the checkpoint
    result   of the training
    """

    facts: dict[str, Any]
    result: TrainResult
    notes: list[str] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)


def finetune_checkpoint(
    options: FinetuneOptions, progress: ProgressFunction = lambda stage, done, total: None
) -> Finetuned:
    """Train with the mask held; write the checkpoint in the layout it came in, and its provenance.

    Upon Ctrl-C the steps made are in work/last.pt. A step that is not finite is not made (see `Trainer`), and what was
    saved before it stays. Raises FastalterError kinds only.
    """
    training = check_options(options)
    from fastalter.checkpoint import load_checkpoint
    from fastalter.data.loading import training_batches
    from fastalter.finetuning.model import finetune_model

    loaded = load_checkpoint(options.checkpoint, image_size=parse_image_size(options.image_size))
    model = loaded.model.to(options.device)
    mask = _mask_of(options)
    notes = [*loaded.notes, *zero_remarks(model, mask)]
    if options.data == SYNTHETIC:
        notes.append("trained on synthetic data; for a model to use, give its own --data")
    batches = training_batches(
        options.data,
        config=loaded.config,
        batch_size=options.batch_size,
        sweeps=options.sweeps,
        seed=options.seed,
        augment=options.augment,
    )
    result = finetune_model(
        model,
        batches,
        mask,
        options=training,
        folder=options.work,
        resume=options.resume,
        progress=progress,
        facts=_run_facts(options, loaded),
    )
    facts = _provenance(options, training, loaded, mask, result)
    written = write_all(_writers(options, loaded, model, facts))
    return Finetuned(facts, result, notes, written)


def check_options(options: FinetuneOptions) -> TrainOptions:
    """Everything that can be refused without opening a file; the training's settings. Raises a FastalterError."""
    from fastalter.training import TrainOptions

    if (options.mask is None) != options.dense:
        raise MaskError("give the mask that is held, with --mask, or --dense to train every weight; one of the two")
    check_least(options, batch_size=1, sweeps=0, seed=0)
    parse_image_size(options.image_size)
    check_outputs(
        {"--out": options.out, "the JSON beside --out": options.provenance},
        {"the checkpoint": options.checkpoint, "--mask": options.mask},
    )
    check_folder("--work", options.work)
    check_device(options.device)
    if options.data == "example":
        raise DataError("--data example: random batches teach nothing; give nuscenes:/path:version:split or synthetic")
    return TrainOptions(
        steps=options.steps,
        lr=options.lr,
        weight_decay=options.weight_decay,
        warmup=options.warmup,
        clip=options.clip,
        checkpoint_every=options.checkpoint_every,
        seed=options.seed,
    )


def _mask_of(options: FinetuneOptions) -> Mask | None:
    if options.mask is None:
        return None
    from fastalter.masks import Mask

    return Mask.load(options.mask)


def zero_remarks(model: nn.Module, mask: Mask | None) -> list[str]:
    """A note where weights that the mask drops are not zero yet. Raises MaskError for a mask of another model."""
    if mask is None:
        return []
    from fastalter.masks.places import places

    mask = mask.weights()
    alive = sum(
        int((place.weight.detach().cpu()[~mask[name]] != 0).sum()) for name, place in places(model, mask).items()
    )
    pruned = mask.layout.size - mask.kept_total
    return [f"{alive:,} of the {pruned:,} weights that the mask drops were not zero; they are now"] if alive else []


def _run_facts(options: FinetuneOptions, loaded: Loaded) -> dict[str, Any]:
    """What a resume must agree with, beside the training's settings and the mask."""
    return {
        "checkpoint": loaded.sha256,
        "data": options.data,
        "synthetic": options.data == SYNTHETIC,
        "batch_size": options.batch_size,
        "sweeps": options.sweeps,
        "image_size": list(loaded.config.camera.image_size),
        "augment": options.augment,
    }


def _provenance(
    options: FinetuneOptions, training: TrainOptions, loaded: Loaded, mask: Mask | None, result: TrainResult
) -> dict[str, Any]:
    import torch

    return {
        "kind": "finetuned",
        "fastalter_version": __version__,
        "torch_version": str(torch.__version__),
        "model": loaded.config.name,
        **_run_facts(options, loaded),
        "checkpoint": {"path": str(loaded.path), "sha256": loaded.sha256, "layout": loaded.layout},
        "made_by": _made_by(options.checkpoint),
        "mask": None if mask is None or options.mask is None else _mask_facts(options.mask, mask),
        "training": asdict(training),
        "loss": {"first": result.losses[0]["total"], "last": result.losses[-1]["total"]},
    }


def _mask_facts(path: Path, mask: Mask) -> dict[str, Any]:
    from fastalter.finetuning.model import mask_digest

    facts = {"path": str(path), "digest": mask_digest(mask), "ratio": mask.ratio, "kept": mask.kept_total}
    return {**facts, "weights": mask.layout.size, "metadata": mask.metadata}


def _made_by(checkpoint: Path) -> Any:
    """The provenance beside the checkpoint that came in, as an earlier verb wrote it; None where there is none."""
    try:
        return json.loads(checkpoint.with_name(f"{checkpoint.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _writers(
    options: FinetuneOptions, loaded: Loaded, model: nn.Module, facts: dict[str, Any]
) -> Mapping[Path, Callable[[Path], object]]:
    """The checkpoint first, for its hash goes into the JSON."""

    def checkpoint(path: Path) -> None:
        loaded.save(path, model)
        facts["sha256"] = sha256(path)

    def provenance(path: Path) -> None:
        path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    return {options.out: checkpoint, options.provenance: provenance}
