"""The embedded checkpoint: bevfusion-tiny, trained on synthetic data by `make tiny-checkpoint`.

`bevfusion_tiny.json` beside it says how it was made and what it reaches, `.csv` and `.png` show its losses.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EMBEDDED = Path(__file__).parent / "bevfusion_tiny.pth"


def provenance() -> dict[str, Any]:
    """How the embedded checkpoint was made: command, settings, versions, seconds, results."""
    document: dict[str, Any] = json.loads(EMBEDDED.with_suffix(".json").read_text(encoding="utf-8"))
    return document
