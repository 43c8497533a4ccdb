"""Files on disk: written whole or not at all, and every tensor file carries what made it.

An artifact is a safetensors file whose header holds one JSON document under the key `fastalter`.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from fastalter.errors import FastalterError
from fastalter.version import __version__

METADATA_KEY = "fastalter"


def sha256(path: str | os.PathLike[str]) -> str:
    """Of a whole file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_sha256(metadata: Mapping[str, Any]) -> str | None:
    """Of the checkpoint that an artifact says it was made from; None where it does not say."""
    checkpoint = metadata.get("checkpoint")
    found = checkpoint.get("sha256") if isinstance(checkpoint, dict) else None
    return found if isinstance(found, str) else None


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it onto `path` when the block ends well, remove it otherwise."""
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise FastalterError(
            f"{target}: cannot write into {target.parent} ({error.strerror}); name another place"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; an artifact follows the user's umask
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_artifact(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write tensors and their metadata as one safetensors file of a `kind` ("scores", "mask", ...)."""
    document = {"kind": kind, "fastalter_version": __version__, "torch_version": str(torch.__version__), **metadata}
    arrays: dict[str, np.ndarray[Any, Any]] = {k: t.detach().cpu().contiguous().numpy() for k, t in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(arrays, temporary, metadata={METADATA_KEY: json.dumps(document)})


def read_artifact(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of an artifact of this kind.

    Raises:
        FastalterError: no such file, not safetensors, or an artifact of another kind.
    """
    if not Path(path).is_file():
        raise FastalterError(f"{path}: no such file; give the {kind} file that an earlier step wrote")
    try:
        with safe_open(path, framework="pt") as file:
            document = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            if document.get("kind") != kind:
                found = document.get("kind", "a safetensors file from elsewhere")
                raise FastalterError(f"{path}: expected fastalter {kind}, found {found}; give the {kind} file")
            return {key: file.get_tensor(key) for key in file.keys()}, document  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise FastalterError(f"{path}: not a readable safetensors file ({error}); write it again") from error
