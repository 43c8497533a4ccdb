"""Checks that the jobs of several verbs make on their options before any file is opened."""

from __future__ import annotations

import re
from pathlib import Path

from fastalter.errors import BackendError, DataError, MaskError

DEVICES = ("cpu", "cuda")


def check_least(options: object, **least: int) -> None:
    """Whole-number options that must reach a least value. Raises DataError naming the option."""
    for name, value in least.items():
        given = getattr(options, name)
        if not value <= given < 2**63:
            raise DataError(f"--{name.replace('_', '-')} {given}: give {value} or more, below 2**63")


def parse_min_keep(text: str | None) -> float | None:
    """--min-keep as a number: "2" is a count (int), "0.01" a share (float). Raises MaskError."""
    if text is None:
        return None
    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise MaskError(f"--min-keep {text}: give a share of each layer, such as 0.01, or a count, such as 1") from None


def check_device(device: str) -> None:
    """Raises BackendError for a device that is not there."""
    if device not in DEVICES:
        raise BackendError(f"--device is {device!r}: give one of {', '.join(DEVICES)}")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise BackendError("--device cuda: torch sees no CUDA device here; use --device cpu")


def check_folder(name: str, folder: Path | None) -> None:
    """A place that can be a folder, now or once it is made. Raises DataError naming the option."""
    if folder is None or folder.is_dir():
        return
    if folder.exists():
        raise DataError(f"{name} {folder} is a file: give a folder")
    if not folder.parent.is_dir():
        raise DataError(f"{name} {folder}: there is no folder {folder.parent}; make it first")


def parse_image_size(text: str | None) -> tuple[int, int] | None:
    """(H, W) of "HxW" in pixels; None stays None. Raises DataError."""
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not match:
        raise DataError(f"--image-size {text}: give height x width in pixels, such as 256x704")
    return int(match[1]), int(match[2])
