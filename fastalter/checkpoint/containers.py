"""The three kinds of file a checkpoint comes in: torch's zip, torch's older run of pickles, and safetensors.

Each function takes the mapped file and gives back the object in it with its tensors as views of the mapping. What is
wrong with a file is raised as a CheckpointError without the path; `reader.py` adds it.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from mmap import mmap
from typing import IO, Any, cast

import torch
from torch import Tensor

from fastalter.checkpoint.names import StubClass, is_native_order, shown
from fastalter.checkpoint.tensors import Storage, StorageType, map_storage
from fastalter.checkpoint.unpickler import Unpickler
from fastalter.errors import CheckpointError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_PICKLE = 1 << 28
TRUNCATED = "the file is cut short or damaged: download it again"


@dataclass
class Contents:
    """The object of a file, how it was stored, the stubs in it and what is worth telling."""

    root: object
    container: str
    stubs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _StorageId:
    """A persistent id ("storage", type, key, location, elements[, view])."""

    dtype: torch.dtype
    key: str
    count: int
    view: tuple[int, int] | None

    @classmethod
    def parse(cls, identity: object) -> _StorageId:
        match identity:
            case ("storage", StorageType() as kind, str() | int() as key, str() as place, int() as count, *view):
                if place == "meta":
                    raise CheckpointError(
                        "its tensors were saved on the meta device and hold no values: save real weights"
                    )
                return cls(kind.element, str(key), count, cls._view(view[0] if view else None))
        raise CheckpointError(f"the pickle asks for a storage in an unknown way; {TRUNCATED}")

    @staticmethod
    def _view(view: object) -> tuple[int, int] | None:
        match view:
            case None:
                return None
            case (_, int() as start, int() as length) if start >= 0 and length >= 0:
                return start, length
        raise CheckpointError(f"the pickle gives a storage an unknown view; {TRUNCATED}")


def read_zip(buffer: mmap) -> Contents:
    """torch.save since 1.6: a zip with one data.pkl and one stored entry per storage."""
    with zipfile.ZipFile(cast(IO[bytes], buffer)) as archive:
        infos = archive.infolist()
    entries = {info.filename: info for info in infos}
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1 or len(entries) != len(infos):
        raise CheckpointError("it is a zip, but not one that torch.save writes: give the .pth file itself")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in entries:
        raise CheckpointError("it is a TorchScript archive: save the model's state_dict() with torch.save instead")
    if sum(info.file_size for info in infos) > len(buffer):
        raise CheckpointError(f"its zip entries overlap or are compressed; {TRUNCATED}")
    spans = {name: _zip_span(buffer, info) for name, info in entries.items()}
    _check_byte_order(buffer, spans.get(f"{root}byteorder"))

    def storage(identity: object) -> Storage:
        wanted = _StorageId.parse(identity)
        offset, length = spans.get(f"{root}data/{wanted.key}", (0, -1))
        if wanted.count * wanted.dtype.itemsize != length:
            raise CheckpointError(
                f"storage {shown(wanted.key)} is missing or of another length than stated; {TRUNCATED}"
            )
        return Storage(map_storage(buffer, offset, wanted.count, wanted.dtype))

    start, length = spans[pickles[0]]
    if length > MAX_PICKLE:
        raise CheckpointError(f"its data.pkl has {length} bytes, beyond any checkpoint's: give another file")
    machine = Unpickler(persistent=storage)
    contents = Contents(machine.load(io.BytesIO(buffer[start : start + length])), "zip", list(machine.stubs))
    broken = [n for n, (at, size) in spans.items() if zlib.crc32(memoryview(buffer)[at : at + size]) != entries[n].CRC]
    if broken:
        first = shown(broken[0])
        contents.notes.append(
            f"{len(broken)} checksums in the zip do not match ({first} first): the file may be damaged"
        )
    return contents


def _zip_span(buffer: mmap, info: zipfile.ZipInfo) -> tuple[int, int]:
    """(offset, length) of a stored entry's bytes, read off its local header."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
        raise CheckpointError(
            f"its entry {shown(info.filename)} is compressed or encrypted: save it again with torch.save"
        )
    header = buffer[info.header_offset : info.header_offset + 30]
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise CheckpointError(f"its entry {shown(info.filename)} has no header; {TRUNCATED}")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    offset = info.header_offset + 30 + name_length + extra_length
    if offset + info.file_size > len(buffer):
        raise CheckpointError(f"its entry {shown(info.filename)} reaches beyond the file; {TRUNCATED}")
    return offset, info.file_size


def _check_byte_order(buffer: mmap, span: tuple[int, int] | None) -> None:
    if span is None:
        return
    order = buffer[span[0] : span[0] + min(span[1], 16)].decode("ascii", "replace")
    if not is_native_order(order):
        raise CheckpointError(f"it was saved in {shown(order)} byte order: save it again on a machine like this one")


def read_legacy(buffer: mmap) -> Contents:
    """torch.save before 1.6: pickles of magic number, protocol, system, the object and the storage keys, then bytes."""
    stream = cast(IO[bytes], buffer)
    stream.seek(0)
    magic = Unpickler().load(stream)
    if magic != LEGACY_MAGIC or type(magic) is not int:
        raise CheckpointError(
            "it is a pickle, but not one that torch.save writes: save the state_dict() with torch.save"
        )
    if Unpickler().load(stream) != LEGACY_PROTOCOL:
        raise CheckpointError("it was saved with an unknown protocol of torch.save: save it again with a newer torch")
    system = Unpickler().load(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not is_native_order("little"):
        raise CheckpointError("it was saved in another byte order: save it again on a machine like this one")
    start = stream.tell()
    for _ in pickletools.genops(stream):  # to its end; the storages behind it have to be known first
        pass
    if stream.tell() - start > MAX_PICKLE:
        raise CheckpointError("its pickle is larger than any checkpoint's: give another file")
    keys = Unpickler().load(stream)
    if not isinstance(keys, list) or not all(isinstance(key, str | int) for key in keys):
        raise CheckpointError(f"it has no list of storages; {TRUNCATED}")
    behind = stream.tell()

    wanted: dict[str, _StorageId] = {}
    stream.seek(start)
    Unpickler(persistent=_collector(wanted, len(buffer))).load(stream)
    storages = _legacy_storages(buffer, behind, [str(key) for key in keys], wanted)
    stream.seek(start)
    machine = Unpickler(persistent=lambda identity: _view(storages, _StorageId.parse(identity)))
    return Contents(machine.load(stream), "legacy", list(machine.stubs))


def _collector(wanted: dict[str, _StorageId], limit: int) -> Callable[[object], object]:
    """Stand-ins without memory for a first pass that learns each storage's type and length."""

    def collect(identity: object) -> object:
        if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
            return identity[1] if isinstance(identity[1], StubClass) else StubClass("module")
        found = _StorageId.parse(identity)
        known = wanted.setdefault(found.key, found)
        if (known.dtype, known.count) != (found.dtype, found.count) or not 0 <= found.count <= limit:
            raise CheckpointError(f"storage {shown(found.key)} has two types or an absurd length; {TRUNCATED}")
        length = found.count if found.view is None else found.view[1]
        if length > found.count:
            raise CheckpointError(f"the view of storage {shown(found.key)} reaches beyond it; {TRUNCATED}")
        return Storage(torch.empty(length, dtype=found.dtype, device="meta"))

    return collect


def _legacy_storages(buffer: mmap, at: int, keys: list[str], wanted: dict[str, _StorageId]) -> dict[str, Tensor]:
    storages = {}
    for key in keys:
        if key not in wanted or key in storages:
            raise CheckpointError(f"storage {shown(key)} belongs to no tensor; {TRUNCATED}")
        dtype, count = wanted[key].dtype, wanted[key].count
        if buffer[at : at + 8] != struct.pack("<q", count):
            raise CheckpointError(f"storage {shown(key)} has another length than stated; {TRUNCATED}")
        storages[key] = map_storage(buffer, at + 8, count, dtype)
        at += 8 + count * dtype.itemsize
    return storages


def _view(storages: dict[str, Tensor], wanted: _StorageId) -> Storage:
    if wanted.key not in storages:
        raise CheckpointError(f"storage {shown(wanted.key)} is missing; {TRUNCATED}")
    data = storages[wanted.key]
    if wanted.view is None:
        return Storage(data)
    start, length = wanted.view
    if start + length > data.numel():
        raise CheckpointError(f"the view of storage {shown(wanted.key)} reaches beyond it; {TRUNCATED}")
    return Storage(data[start : start + length])


def read_safetensors(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors in file order and the text metadata of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        handle: Any = file
        return {key: handle.get_tensor(key) for key in handle.offset_keys()}, dict(handle.metadata() or {})
