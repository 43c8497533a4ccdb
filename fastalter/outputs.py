"""Output files, all or nothing: checked before the work starts, written beside their place, then renamed into it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from fastalter.errors import DataError


def check_outputs(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None]) -> None:
    """Refuse places that cannot be written, collide with each other or with an input.

    Both map the option's name to its path, or to None where it was not given. Raises DataError naming option and path.
    """
    taken = {path.resolve(): name for name, path in inputs.items() if path is not None}
    for name, path in outputs.items():
        if path is None:
            continue
        if path.is_dir():
            raise DataError(f"{name} {path} is a folder: give the name of a file in it")
        if not path.parent.is_dir():
            raise DataError(f"{name} {path}: there is no folder {path.parent}; make it first")
        if not os.access(path.parent, os.W_OK):
            raise DataError(f"{name} {path}: the folder {path.parent} cannot be written to; choose another")
        if path.resolve() in taken:
            raise DataError(f"{name} {path} is also {taken[path.resolve()]}: give each its own file")
        taken[path.resolve()] = name


def write_all(writers: Mapping[Path, Callable[[Path], object]]) -> list[Path]:
    """Write every file or none: each writer fills a temporary file in the same folder, then all are renamed.

    Returns the paths written. Raises DataError where the system refuses; no temporary file stays behind.
    """
    from safetensors import SafetensorError

    from fastalter.artifacts import atomic_path

    try:
        with ExitStack() as stack:
            temporary = {path: stack.enter_context(atomic_path(path)) for path in writers}
            for path, write in writers.items():
                write(temporary[path])
    except (OSError, SafetensorError) as error:
        places = ", ".join(map(str, writers))
        raise DataError(
            f"cannot write {places}: {error}; nothing was written, free the place or name another"
        ) from error
    return list(writers)
