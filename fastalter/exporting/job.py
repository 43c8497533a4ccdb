"""The whole job of the export verb as a function: a checkpoint in, its deployable parts as ONNX files out."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastalter.artifacts import sha256
from fastalter.errors import DataError, ExportError
from fastalter.options import check_folder, check_least, parse_image_size
from fastalter.outputs import write_all
from fastalter.report.progress import ProgressFunction
from fastalter.version import __version__

if TYPE_CHECKING:
    from fastalter.checkpoint import Loaded
    from fastalter.exporting.parts import OnnxPart

RECORD = "export.json"


@dataclass(frozen=True)
class ExportOptions:
    """What the verb's options say; see `python -m fastalter.export --help`."""

    checkpoint: Path
    out: Path
    parts: str | None = None
    opset: int | None = None
    model: str | None = None
    image_size: str | None = None
    cameras: int = 6
    seed: int = 0


@dataclass(frozen=True)
class Export:
    """What came out. `record` is what export.json says; `notes` are the loader's."""

    record: dict[str, Any]
    notes: list[str]
    written: list[Path] = field(default_factory=list)


def export_checkpoint(options: ExportOptions, progress: ProgressFunction = lambda stage, done, total: None) -> Export:
    """Write every part, hold it against torch in onnxruntime, and say in export.json what is in the folder.

    Nothing is written unless every file computes what torch does.

    Raises:
        FastalterError: an option that cannot be, a file that cannot be read, a part that the model does not have or
            that comes out wrong.
    """
    check_options(options)
    from fastalter.checkpoint import load_checkpoint
    from fastalter.exporting.parts import onnx_parts

    size = parse_image_size(options.image_size)
    loaded = load_checkpoint(options.checkpoint, model=options.model, image_size=size)
    parts = onnx_parts(loaded.model, part_names(options.parts), options.cameras)
    record = _record(options, loaded)
    with _folder(options.out):
        written = write_all(_writers(options, parts, record, progress))
    return Export(record, list(loaded.notes), written)


def check_options(options: ExportOptions) -> None:
    """Everything that can be refused without opening a file. Raises a FastalterError naming the option."""
    from fastalter.exporting.onnx_file import LEAST_OPSET, MOST_OPSET, check_packages
    from fastalter.exporting.parts import check_parts

    check_parts(part_names(options.parts))
    if options.opset is not None and not LEAST_OPSET <= options.opset <= MOST_OPSET:
        raise ExportError(f"--opset {options.opset}: give {LEAST_OPSET} to {MOST_OPSET}, which torch's exporter speaks")
    check_least(options, cameras=1, seed=0)
    parse_image_size(options.image_size)
    check_folder("--out", options.out)
    check_packages()


def part_names(text: str | None) -> tuple[str, ...] | None:
    """--parts as names: ("camera", "head") of "camera,head"; None stays None."""
    return None if text is None else tuple(name.strip() for name in text.split(","))


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make the folder if it is not there, and take it away again if nothing comes into it."""
    made = not path.exists()
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {path}: cannot make it ({error.strerror}); name another place") from error
    try:
        yield
    except BaseException:
        if made:
            path.rmdir()
        raise


def _record(options: ExportOptions, loaded: Loaded) -> dict[str, Any]:
    """What export.json says, but for the files that are yet to be written."""
    from fastalter.exporting.onnx_file import OPSET, PACKAGES, TOLERANCE

    return {
        "kind": "fastalter export",
        "fastalter_version": __version__,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", *PACKAGES)},
        "checkpoint": {"path": str(loaded.path), "sha256": loaded.sha256},
        "model": loaded.config.name,
        "config": loaded.config.to_dict(),
        "opset": options.opset or OPSET,
        "tolerance": TOLERANCE,
        "files": {},
    }


def _writers(
    options: ExportOptions, parts: list[OnnxPart], record: dict[str, Any], progress: ProgressFunction
) -> dict[Path, Callable[[Path], object]]:
    """In order: the record comes last, because it says what is in the files before it."""
    from fastalter.exporting.onnx_file import check_onnx, write_onnx

    source = {name: record[name] for name in ("fastalter_version", "checkpoint", "model")}

    def writer(place: int, part: OnnxPart) -> Callable[[Path], object]:
        def write(path: Path) -> None:
            progress("export", place, len(parts))
            write_onnx(part, path, opset=record["opset"], metadata=source)
            errors = check_onnx(part, path, seed=options.seed)
            record["files"][part.file] = {
                "sha256": sha256(path),
                "bytes": path.stat().st_size,
                "inputs": {name: list(shape) for name, shape in part.inputs.items()},
                "outputs": {name: {"difference": error} for name, error in errors.items()},
            }
            progress("export", place + 1, len(parts))

        return write

    def write_record(path: Path) -> None:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    files = {options.out / part.file: writer(place, part) for place, part in enumerate(parts)}
    return {**files, options.out / RECORD: write_record}
