"""python -m recipes.tiny_checkpoint: make fastalter/assets/bevfusion_tiny.pth from nothing.

A synthetic dataset; a camera-only and a LiDAR-only detector, each trained alone and at the same time; their backbones
loaded into bevfusion-tiny, which is trained on; then mAP and NDS of all three by the official DetectionEval on scenes
that no training saw, and what the fusion loses with either branch's features zeroed. Every step is skipped where its
result is there already, so that an interrupted recipe goes on where it was.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from bench.bulk import provenance
from fastalter import models
from fastalter.data import Batch
from fastalter.data.loading import training_batches
from fastalter.data.nuscenes import NuScenesFrames
from fastalter.data.synthetic import SyntheticSettings
from fastalter.data.synthetic.dataset import write_dataset
from fastalter.data.synthetic.tables import TRAIN, VAL, VERSION
from fastalter.evaluation import evaluate_model
from fastalter.models import BEVFusionConfig
from fastalter.models.bevfusion import BEVFusion
from fastalter.report.progress import progress_bars
from fastalter.tasks.detection.depth import loss_with_depth
from fastalter.training import Trainer, TrainOptions
from fastalter.training.recalibrate import recalibrate
from recipes.report import write_assets

MODEL = "bevfusion-tiny"
ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "tiny-checkpoint"
ASSETS = ROOT / "fastalter" / "assets"
DATA = SyntheticSettings(scenes=800, val_scenes=80, samples=4, seed=0)
"""3,200 frames to train on and 320 to judge by."""
BATCH_SIZE = 8
HINTS = ".dtransform."
"""In the names of the layers that read the LiDAR's depth hints."""


@dataclass(frozen=True)
class Part:
    """One of the three trainings."""

    sensors: tuple[str, ...]
    options: TrainOptions
    threads: int
    seed: int


PARTS = {
    "camera": Part(("camera",), TrainOptions(steps=1300, lr=1e-3, warmup=0.1, clip=10.0), threads=1, seed=1),
    "lidar": Part(("lidar",), TrainOptions(steps=1200, lr=2e-3, warmup=0.1, clip=10.0), threads=1, seed=2),
    "fusion": Part(("camera", "lidar"), TrainOptions(steps=1200, lr=1e-3, warmup=0.1, clip=10.0), threads=1, seed=3),
}

app = typer.Typer(add_completion=False)


@app.command()
def recipe(
    work: Annotated[Path, typer.Option(help="Where data and training states go.")] = WORK,
    assets: Annotated[Path, typer.Option(help="Where the checkpoint and its provenance go.")] = ASSETS,
    part: Annotated[str | None, typer.Option(help="Train this part alone: camera, lidar or fusion.")] = None,
    shrink: Annotated[int, typer.Option(help="Divide scenes and steps by this, for a quick try.")] = 1,
) -> None:
    """Make the embedded checkpoint."""
    if part is not None:
        train(part, work, shrink)
        return
    make_parents(work, shrink)
    with stage(work, "fusion"):
        side_by_side(("fusion",), work, shrink)
    with stage(work, "evaluation"):
        results = evaluate(work)
    write_assets(assets, work, load(work, "fusion"), results, settings(shrink))


def make_parents(work: Path, shrink: int = 1) -> None:
    """The dataset and the single-sensor detectors, each made where it is missing."""
    begin(work, shrink)
    with stage(work, "camera and lidar"):
        side_by_side(("camera", "lidar"), work, shrink)


def begin(work: Path, shrink: int = 1) -> None:
    """The work folder and the dataset, made where they are missing."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "commit").exists():
        (work / "commit").write_text(provenance()["commit"])
    torch.set_num_threads(1)
    with stage(work, "data"):
        make_data(work, shrink)


@contextmanager
def stage(work: Path, name: str) -> Iterator[None]:
    """Add the wall time of a stage to work/seconds.json, over all calls of the recipe."""
    print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
    path = work / "seconds.json"
    seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - start, 1)
        path.write_text(json.dumps(seconds, indent=1))


def settings(shrink: int) -> dict[str, Any]:
    """What was asked for, as plain data."""
    parts = {name: asdict(replace(part, options=shrunk(part, shrink))) for name, part in PARTS.items()}
    return {"data": asdict(DATA), "batch_size": BATCH_SIZE, "parts": parts, "shrink": shrink}


def shrunk(part: Part, shrink: int) -> TrainOptions:
    return replace(part.options, steps=max(2, part.options.steps // shrink))


def make_data(work: Path, shrink: int) -> None:
    if (work / "data").exists():
        return
    scenes = replace(DATA, scenes=max(2, DATA.scenes // shrink), val_scenes=max(2, DATA.val_scenes // shrink))
    with progress_bars() as progress:
        write_dataset(work / "data", scenes, progress=progress)


def side_by_side(parts: tuple[str, ...], work: Path, shrink: int) -> None:
    """Train parts in processes of their own: one thread each is steadier than two that wait for each other."""
    arguments = ("--work", str(work), "--shrink", str(shrink))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = {
        part: subprocess.Popen(
            [sys.executable, "-m", "recipes.tiny_checkpoint", "--part", part, *arguments], cwd=ROOT, env=environment
        )
        for part in parts
        if not (work / f"{part}.pt").exists()
    }
    failed = [part for part, process in running.items() if process.wait() != 0]
    if failed:
        raise SystemExit(
            f"training of {', '.join(failed)} failed; run the recipe again to go on from its last checkpoint"
        )


def config_of(part: str) -> BEVFusionConfig:
    config = models.config_of(MODEL)
    return config if part == "fusion" else config.with_sensors(*PARTS[part].sensors)


def train(part: str, work: Path, shrink: int) -> None:
    """Train one part from its last checkpoint, or from the start, to work/{part}.pt."""
    chosen = PARTS[part]
    torch.set_num_threads(chosen.threads)
    model = models.build(config_of(part), seed=chosen.seed)
    if part == "fusion":
        adopt(model, work)
    spec = f"nuscenes:{work / 'data'}:{VERSION}:{TRAIN}"
    batches = training_batches(spec, config=model.config, batch_size=BATCH_SIZE, seed=chosen.seed)
    loss = loss_with_depth if part == "camera" else BEVFusion.loss
    folder, options = work / part, shrunk(chosen, shrink)
    with progress_bars() as progress:
        trainer = Trainer(model, loss, batches, options, folder=folder, progress=progress)
        result = trainer.run(resume=(folder / "last.pt").exists())
    if part == "camera":
        settle_hints(model, batches)
    torch.save(model.state_dict(), work / f"{part}.pt")
    print(f"{part}: {result.steps} steps, {result.seconds:.0f} s", flush=True)


def settle_hints(model: BEVFusion, batches: Callable[[int], Batch]) -> None:
    """Measure the norms of the depth-hint layers anew, with the final weights.

    Without a LiDAR their input is constant. Its variance is zero, so that eval mode magnifies by 1/sqrt(eps) whatever
    the running mean lags behind weights that moved: the detector found nothing (mAP 0.002) until this was done.
    """
    recalibrate(model, batches, count=20, part=model.get_submodule("encoders.camera.vtransform.dtransform"))


def adopt(model: BEVFusion, work: Path) -> None:
    """Load the parents' backbones."""
    graft(model, backbones(work))


def backbones(work: Path) -> dict[str, Tensor]:
    """What a fusion model takes from its parents: all of both branches but the layers of the depth hints.

    Those stay fresh: the camera's parent never had hints.
    """
    taken: dict[str, Tensor] = {}
    for sensor in PARTS["fusion"].sensors:
        state = torch.load(work / f"{sensor}.pt", weights_only=True)
        taken |= {key: value for key, value in state.items() if key.startswith(f"encoders.{sensor}.")}
    return {key: value for key, value in taken.items() if HINTS not in key}


def graft(model: BEVFusion, taken: Mapping[str, Tensor]) -> None:
    """Put the parents' backbones into a fusion model, in place."""
    prefixes = tuple(f"encoders.{sensor}." for sensor in PARTS["fusion"].sensors)
    wanted = {key for key in model.state_dict() if key.startswith(prefixes) and HINTS not in key}
    assert set(taken) == wanted
    model.load_state_dict(dict(taken), strict=False)


def load(work: Path, part: str) -> BEVFusion:
    """A trained part, in eval mode."""
    model = models.build(config_of(part))
    model.load_state_dict(torch.load(work / f"{part}.pt", weights_only=True))
    return model.eval()


def evaluate(work: Path) -> dict[str, Any]:
    """The official metric of every part, and of the fusion with either branch's feature zeroed."""
    results: dict[str, Any] = {}
    for part in PARTS:
        results[part] = metrics(load(work, part), work / "results" / part)
    for sensor in PARTS["fusion"].sensors:
        model = load(work, "fusion")
        model.get_submodule(model.outlets[sensor]).register_forward_hook(lambda m, i, out: torch.zeros_like(out))
        results[f"fusion, {sensor} zeroed"] = metrics(model, work / "results" / f"fusion-without-{sensor}")
    return results


def metrics(model: BEVFusion, folder: Path) -> dict[str, Any]:
    frames = NuScenesFrames(folder.parents[1] / "data", VERSION, VAL, keep_unseen=True)
    with progress_bars() as progress:
        found = evaluate_model(model, frames, batch_size=BATCH_SIZE, folder=folder, progress=progress)
    print(f"{folder.name}: mAP {found.mean_ap:.3f}, NDS {found.nd_score:.3f}", flush=True)
    return found.to_dict()


if __name__ == "__main__":
    app()
