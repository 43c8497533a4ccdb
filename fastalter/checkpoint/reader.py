"""Open a checkpoint file without trusting it: what kind it is, where its state dict is, and what else it carries."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

from torch import Tensor

from fastalter.checkpoint.containers import TRUNCATED, Contents, read_legacy, read_safetensors, read_zip
from fastalter.checkpoint.names import Stub, StubClass, shown
from fastalter.errors import CheckpointError

STATE_KEYS = ("state_dict", "model", "model_state_dict")
"""Top-level keys under which a state dict is found; without any of them the file itself is one."""
_OTHER_FILES = (
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"\x1f\x8b", "a gzip file; unpack it first"),
    (b"\x89HDF", "an HDF5 file"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the real file with `git lfs pull`"),
    (b"<!DOCTYPE", "a web page; the download went wrong"),
    (b"<html", "a web page; the download went wrong"),
)


@dataclass
class Archive:
    """A checkpoint file, read.

    Attributes:
        root: the object in the file (a dict), its tensors views of the file.
        state: the state dict in it, by the file's own keys and in its order.
        state_key: where in `root` the state dict is; None where `root` is the state dict.
        container: "zip", "legacy" or "safetensors".
        metadata: the text metadata of a safetensors file.
        size: the file's length in bytes.
    """

    path: Path
    root: Mapping[Any, object]
    state: Mapping[str, Tensor]
    state_key: str | None
    container: str
    sha256: str
    size: int
    metadata: dict[str, str] = field(default_factory=dict)
    stubs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_checkpoint(path: str | os.PathLike[str]) -> Archive:
    """Read a .pth/.pt/.pkl/.safetensors file without running anything in it.

    Raises:
        CheckpointError: one line with the path: missing, unreadable, cut short, no checkpoint, or naming a global
            that could run code.
    """
    place = Path(path)
    try:
        with _open(place) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            # Copy on write: torch insists on writable memory, and nothing ever writes through it.
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return _archive(place, mapping, digest, size)
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error}") from error
    except Exception as error:  # whatever bytes do to a parser, the caller hears of it in one way
        raise CheckpointError(f"{place}: {TRUNCATED} ({shown(f'{type(error).__name__}: {error}')})") from error


def _open(path: Path) -> BufferedReader:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise CheckpointError("is a folder: give the checkpoint file in it")
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError("is not a regular file: give a checkpoint file")
        if status.st_size == 0:
            raise CheckpointError("is empty: download it again")
        return open(path, "rb")
    except FileNotFoundError:
        raise CheckpointError("no such file: check the path") from None
    except PermissionError:
        raise CheckpointError("may not be read by this user: change its permissions") from None
    except OSError as error:
        raise CheckpointError(f"cannot be opened ({error.strerror}): check the path") from None


def _archive(path: Path, mapping: mmap.mmap, digest: str, size: int) -> Archive:
    head = mapping[:32]
    for magic, name in _OTHER_FILES:
        if head.startswith(magic):
            raise CheckpointError(f"is no checkpoint but {name}")
    if _is_safetensors(mapping, head):
        tensors, metadata = read_safetensors(str(path))
        state = check_state(tensors)
        return Archive(path, dict(state), state, None, "safetensors", digest, size, metadata)
    if head.startswith(b"PK\x03\x04"):
        contents = read_zip(mapping)
    elif head.startswith(b"\x80") or _is_text_pickle(head):
        contents = read_legacy(mapping)
    else:
        raise CheckpointError(
            "is no checkpoint (neither torch.save's nor safetensors'): give a .pth or .safetensors file"
        )
    root, key, state = find_state(contents)
    return Archive(path, root, state, key, contents.container, digest, size, {}, contents.stubs, contents.notes)


def _is_safetensors(mapping: mmap.mmap, head: bytes) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= len(mapping) - 8


def _is_text_pickle(head: bytes) -> bool:
    """A pickle of protocol 0 or 1, as attacks like to be: it opens with a global, a mark or a literal."""
    return head[:1] in (b"c", b"(", b"L", b"I", b"]", b"}", b"d", b"l") and not head.isspace()


def find_state(contents: Contents) -> tuple[Mapping[Any, object], str | None, Mapping[str, Tensor]]:
    """(root, key of the state dict or None, the state dict). Raises CheckpointError where there is none."""
    root = contents.root
    if isinstance(root, Stub | StubClass):
        raise CheckpointError(
            f"holds a pickled object ({shown(root.name)}): save its state_dict() with torch.save instead"
        )
    if not isinstance(root, dict):
        raise CheckpointError(f"holds a {type(root).__name__} where a state dict should be: save model.state_dict()")
    if isinstance(root.get("model_state"), dict):
        raise CheckpointError(
            "is an OpenPCDet checkpoint (model_state), which is not supported: give MIT's or mmdet3d's"
        )
    for key in STATE_KEYS:
        if isinstance(root.get(key), dict):
            return root, key, check_state(root[key])
    if root and not any(isinstance(value, Tensor) for value in root.values()):
        names = ", ".join(shown(key, 30) for key in list(root)[:5])
        raise CheckpointError(f"holds no state dict (its entries: {names}): give a file with 'state_dict' in it")
    return root, None, check_state(root)


def check_state(state: Mapping[Any, object]) -> Mapping[str, Tensor]:
    """The mapping itself, if it is a non-empty one of names to tensors."""
    if not state:
        raise CheckpointError("holds an empty state dict: give a file with weights in it")
    checked: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            kind = value.name if isinstance(value, Stub | StubClass) else type(value).__name__
            raise CheckpointError(
                f"its state dict holds {shown(kind)} under {shown(key)!r}, not a tensor: save state_dict()"
            )
        checked[key] = value
    return checked
