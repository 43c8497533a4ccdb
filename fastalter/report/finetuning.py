"""A fine-tuning on stdout."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fastalter.report.terminal import print_lines

if TYPE_CHECKING:
    from fastalter.finetuning.job import Finetuned


def show_finetuned(done: Finetuned, *, as_json: bool) -> None:
    """What was trained on what, the loss before and after; or the provenance as one JSON object, notes on stderr."""
    print_lines("note", done.notes, stderr=as_json)
    if as_json:
        print(json.dumps(done.facts))
        return
    facts, mask = done.facts, done.facts["mask"]
    held = (
        f"{mask['kept']:,} of {mask['weights']:,} prunable weights, the others held at zero" if mask else "all weights"
    )
    print(f"{facts['model']}, {held}: {done.result.steps} steps on {facts['data']}, {done.result.seconds:.1f} s now")
    print(f"loss {facts['loss']['first']:.4f} at the first step, {facts['loss']['last']:.4f} at the last")
    print_lines("wrote", done.written)
