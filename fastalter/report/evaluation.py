"""An evaluation as tables on stdout: a row per dropped sensor, and AP per class."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from fastalter.report.terminal import plain_console, plain_table, print_lines

if TYPE_CHECKING:
    from fastalter.evaluation.job import Evaluation
    from fastalter.tasks.detection.evaluate import DetectionResult

ERRORS = {"trans_err": "mATE", "scale_err": "mASE", "orient_err": "mAOE", "vel_err": "mAVE", "attr_err": "mAAE"}
"""The devkit's names, and those of the papers."""


def show_evaluation(evaluation: Evaluation, *, as_json: bool) -> None:
    """An evaluation on stdout: as tables, or as one JSON object with the notes on stderr."""
    print_lines("note", evaluation.notes, stderr=as_json)
    if as_json:
        print(json.dumps(evaluation.to_dict()))
        return
    console = plain_console()
    facts = evaluation.facts
    place = f"{facts['data']}: split {facts['split']}, {facts['frames']} frames"
    console.print(f"{facts['model'] or facts['results']} on {place}, by nuScenes' DetectionEval")
    for table in (_means(evaluation.states), _classes(evaluation.states)):
        console.print("", table, sep="\n")
    if evaluation.reused:
        print_lines("note", [f"kept from an earlier call: {', '.join(evaluation.reused)}"])
    print_lines("wrote", evaluation.written)


def _means(states: Mapping[str, DetectionResult]) -> Table:
    table = plain_table("Means over the classes", "dropped", "mAP", "NDS", *ERRORS.values(), text=["dropped"])
    for state, result in states.items():
        values = (result.mean_ap, result.nd_score, *(result.tp_errors[name] for name in ERRORS))
        table.add_row(state, *map(number, values))
    return table


def _classes(states: Mapping[str, DetectionResult]) -> Table:
    table = plain_table("AP per class, by the dropped sensor", "class", *states, text=["class"])
    first = next(iter(states.values()))
    for name in first.mean_label_aps:
        table.add_row(name, *(number(result.mean_label_aps[name]) for result in states.values()))
    return table


def number(value: float) -> str:
    """Three decimals; "-" for what a class does not have."""
    return "-" if math.isnan(value) else f"{value:.3f}"
