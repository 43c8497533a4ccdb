"""What the recipe leaves in the repository: checkpoint, provenance, losses, figures."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastalter.artifacts import atomic_path, sha256
from fastalter.checkpoint import save_checkpoint
from fastalter.models.bevfusion import BEVFusion
from fastalter.report.environment import gather
from fastalter.report.plot import COLOURS

COMMAND = "make tiny-checkpoint"
NAME = "bevfusion_tiny"
SMOOTH = 25
"""Steps that a point of the loss figure averages over, and that a row of the committed log stands for."""


def write_assets(assets: Path, work: Path, model: BEVFusion, results: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write bevfusion_tiny.pth, .json (provenance and results), .csv (losses) and .png (their curves) into `assets`."""
    assets.mkdir(parents=True, exist_ok=True)
    checkpoint = assets / f"{NAME}.pth"
    meta = {"command": COMMAND, "data": "synthetic", "seed": settings["data"]["seed"]}
    save_checkpoint(checkpoint, model, meta=meta)
    logs = {part: read_losses(work / part / "losses.csv") for part in settings["parts"]}
    provenance = {
        "command": COMMAND,
        "date": time.strftime("%Y-%m-%d"),
        "commit": (work / "commit").read_text(),
        "sha256": sha256(checkpoint),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "settings": settings,
        "seconds": json.loads((work / "seconds.json").read_text()),
        "machine": {key: value for key, value in gather().items() if key in ("versions", "devices")},
        "results": results,
    }
    with atomic_path(assets / f"{NAME}.json") as temporary:
        temporary.write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")
    write_log(assets / f"{NAME}.csv", logs)
    draw_losses(assets / f"{NAME}.png", logs)
    for name, result in results.items():
        print(f"{name:24} mAP {result['mean_ap']:.3f}  NDS {result['nd_score']:.3f}")
    print(f"wrote {checkpoint} ({checkpoint.stat().st_size / 1e6:.1f} MB) and its .json, .csv and .png")


def read_losses(path: Path) -> list[dict[str, float]]:
    """losses.csv of a training, averaged over every SMOOTH steps; `step` is the first of them."""
    with path.open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    chunks = [rows[i : i + SMOOTH] for i in range(0, len(rows), SMOOTH)]
    return [
        {key: chunk[0][key] if key == "step" else sum(row[key] for row in chunk) / len(chunk) for key in chunk[0]}
        for chunk in chunks
    ]


def write_log(path: Path, logs: dict[str, list[dict[str, float]]]) -> None:
    """All trainings as one table, a row for every SMOOTH steps."""
    columns = sorted({key for rows in logs.values() for row in rows for key in row} - {"step"})
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["part", "step", *columns])
        for part, rows in logs.items():
            for row in rows:
                table.writerow([part, int(row["step"]), *(f"{row[key]:.5g}" if key in row else "" for key in columns)])


def draw_losses(path: Path, logs: dict[str, list[dict[str, float]]]) -> None:
    """A panel per loss, a line per training."""
    names = [key for key in next(iter(logs.values()))[0] if key.startswith("loss_") and key != "loss_depth"]
    figure = Figure(figsize=(3.6 * len(names), 3.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for index, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), index + 1)
        for part, rows in logs.items():
            axes.plot([row["step"] for row in rows], [row[name] for row in rows], label=part, color=COLOURS[part])
        axes.set(title=name, xlabel="step", ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
