"""Small inputs of a report, made by hand: scores with terms, their mask, a comparison, evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from fastalter.altermoma.arena import Layout
from fastalter.criteria import Scores

ROWS = [
    ("cam.stem.conv.weight", [16, 8, 3, 3], "camera"),
    ("cam.neck.weight", [24, 20], "camera"),
    ("lidar.conv.weight", [12, 6, 3, 3], "lidar"),
    ("fuse.0.weight", [16, 16], "fusion"),
    ("head.<b>out</b>.weight", [9, 16], "fusion"),
]
RATIO = 0.75


def make_scores(alpha: float = 1.0, beta: float = 1.0, seed: int = 0) -> Scores:
    """Terms over six powers of ten, a few of them zero; cam.neck is unimportant throughout."""
    layout = Layout.from_json([list(row) for row in ROWS])
    generator = torch.Generator().manual_seed(seed)
    deci = 10 ** (torch.randn(layout.size, generator=generator) - 5)
    reri = deci**0.7 * 10 ** (0.5 * torch.randn(layout.size, generator=generator) - 1.8)
    neck = layout["cam.neck.weight"]
    deci[neck.offset : neck.offset + neck.size] *= 1e-4
    deci[:3], reri[2:5] = 0, 0
    branches = {}
    for branch in layout.branches:
        count = len(range(*layout.range(branch).indices(layout.size)))
        branches[branch] = {"parameters": count + 10, "prunable": count}
    metadata = {
        "method": "altermoma",
        "model": "toy",
        "data": "made by hand",
        "synthetic": None,
        "seed": 3,
        "settings": {"alpha": alpha, "beta": beta, "bn": "train", "image_size": [32, 88]},
        "batches": 5,
        "branches": branches,
        "warnings": ["branch 'lidar': something odd"],
        "checkpoint": {"path": "some/where.pth", "sha256": "ab" * 32, "layout": "mit"},
    }
    return Scores(alpha * deci - beta * reri, layout, metadata, terms={"deci": deci, "reri": reri})


def cell(
    method: str, ratio: float, seed: int, after: float, before: float | None = None, **rest: Any
) -> dict[str, Any]:
    """One cell; NDS is half of mAP."""

    def state(value: float | None) -> dict[str, float] | None:
        return None if value is None else {"mean_ap": value, "nd_score": value / 2}

    return {
        "regime": "trained",
        "method": method,
        "settings": {},
        "ratio": ratio,
        "seed": seed,
        "before": state(before),
        "after": state(after),
        "seconds": {},
        "commit": "c0ffee",
        **rest,
    }


def altermoma(name: str, beta: float | None = None, **arguments: Any) -> dict[str, Any]:
    """Method and settings of a cell, as a comparison writes them."""
    weights = {} if beta is None else {"beta": beta}
    reactivation = {"batches": 5, "lr": 1e-4}
    facts = {"reactivation": reactivation, "reri_data": "paired", **arguments, **weights}
    return {"method": name, "settings": {"criterion": "altermoma", "arguments": facts, "settings": {}}}


def make_comparison() -> dict[str, Any]:
    """Two regimes, two ratios, a sweep of beta, a missing cell, settings that differ in more than beta."""
    plain = {"criterion": "deci", "arguments": {}, "settings": {}}
    cells = []
    for seed in (0, 1):
        for ratio, lower in ((0.8, 0.0), (0.9, 0.1)):
            shift = 0.02 * seed - lower
            cells.append(cell("deci", ratio, seed, 0.7 + shift, 0.3 + shift, settings=plain))
            cells.append({**cell("", ratio, seed, 0.5 + shift, 0.2 + shift), **altermoma("altermoma")})
            cells.append({**cell("", ratio, seed, 0.6 + shift, 0.25 + shift), **altermoma("beta 0.3", 0.3)})
            cells.append({**cell("", ratio, seed, 0.1, 0.1), **altermoma("other", 2.0, bn="frozen")})
        cells.append(cell("snip", 0.9, seed, 0.65, None))
        cells.append(cell("snip", 0.9, seed, 0.4 + 0.1 * seed, None, regime="at load"))
    dense = {"trained": {"mean_ap": 0.83, "nd_score": 0.41}, "at load": None}
    return {"kind": "fastalter comparison", "regimes": ["trained", "at load"], "dense": dense, "cells": cells}


def numbers(value: float) -> dict[str, Any]:
    """The part of an evaluation that the report reads; orientation error missing."""
    errors = {"trans_err": 0.31, "scale_err": 0.26, "orient_err": None, "vel_err": 1.5, "attr_err": 0.72}
    return {"mean_ap": value, "nd_score": value / 2, "tp_errors": errors}


def write_inputs(folder: Path) -> dict[str, Path]:
    """All files of a report, by option."""
    scores = make_scores()
    scores.save(folder / "scores.safetensors")
    scores.mask(RATIO).save(folder / "mask.safetensors")
    (folder / "comparison.json").write_text(json.dumps(make_comparison()))
    states = {"none": numbers(0.77), "camera": numbers(0.22)}
    whole = {"model": "toy", "data": "synthetic: 2 scenes", "frames": 8, "states": states}
    (folder / "out" / "lidar").mkdir(parents=True)
    (folder / "out" / "evaluation.json").write_text(json.dumps(whole))
    (folder / "out" / "lidar" / "metrics_summary.json").write_text(json.dumps(numbers(0.11)))
    facts = {"facts": {"drop": "lidar", "model": "toy", "split": "val"}}
    (folder / "out" / "lidar" / "state.json").write_text(json.dumps(facts))
    return {
        "--scores": folder / "scores.safetensors",
        "--mask": folder / "mask.safetensors",
        "--comparison": folder / "comparison.json",
        "--evaluation": folder / "out" / "evaluation.json",
    }


def arguments(files: dict[str, Path], out: Path, *others: str) -> list[str]:
    """As the command line has them."""
    return [*(str(part) for option in files.items() for part in option), "--out", str(out), *others]
