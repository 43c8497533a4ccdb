"""Checkpoint files of every kind, whole and broken: tensors come out bitwise, everything else as one line."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from fastalter.checkpoint.reader import read_checkpoint
from fastalter.errors import CheckpointError
from tests.checkpoint.files import Calls, forget, pickled_by, reduce_pickle

CONTAINERS = {"zip": True, "legacy": False}


def net_state() -> dict[str, Tensor]:
    """Every dtype, an empty tensor, a scalar, views of one storage, another memory order."""
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    state: dict[str, Tensor] = OrderedDict(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).state_dict())
    state |= {
        "half": base.half(),
        "bf16": base.bfloat16(),
        "double": base.double(),
        "complex": base.to(torch.complex64),
    }
    state |= {"int": base.int(), "byte": base.abs().byte(), "bool": base > 0, "empty": torch.empty(0, 3)}
    state |= {"row": base[1], "column": base[:, 2], "transposed": base.t(), "scalar": torch.tensor(3.0)}
    return state


def save(path: Path, payload: Any, container: str = "zip") -> Path:
    torch.save(payload, path, _use_new_zipfile_serialization=CONTAINERS[container])
    return path


def refusal(path: Path) -> str:
    """The message of a refusal: one line that starts with the path."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("key", ["state_dict", "model", None])
def test_tensors_come_out_bitwise_in_order(container: str, key: str | None, tmp_path: Path) -> None:
    state = net_state()
    payload = (
        state if key is None else {"meta": {"epoch": 3, "classes": ("car",)}, key: state, "optimizer": {"lr": 0.1}}
    )
    archive = read_checkpoint(save(tmp_path / "a.pth", payload, container))
    assert archive.container == container
    assert archive.state_key == key
    assert list(archive.state) == list(state)
    for name, value in state.items():
        torch.testing.assert_close(archive.state[name], value, rtol=0, atol=0)
        assert archive.state[name].dtype == value.dtype
    if key is not None:
        assert archive.root["meta"] == {"epoch": 3, "classes": ("car",)}
        assert list(archive.root) == ["meta", key, "optimizer"]
    assert not archive.stubs
    assert not archive.notes


def test_parameters_and_module_versions_come_along(tmp_path: Path) -> None:
    state = nn.Linear(2, 2).state_dict(keep_vars=True)
    archive = read_checkpoint(save(tmp_path / "a.pth", {"state_dict": state}))
    assert torch.equal(archive.state["weight"], state["weight"])
    assert archive.root["state_dict"]._metadata == state._metadata  # type: ignore[attr-defined]


def test_safetensors_keep_their_metadata(tmp_path: Path) -> None:
    state = {name: value.contiguous() for name, value in net_state().items() if name not in ("row", "column")}
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "a.safetensors", metadata={"made": "here"})
    archive = read_checkpoint(tmp_path / "a.safetensors")
    assert archive.container == "safetensors"
    assert archive.metadata == {"made": "here"}
    assert archive.state.keys() == state.keys()
    assert all(torch.equal(archive.state[k], v) for k, v in state.items())


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    import hashlib

    path = save(tmp_path / "a.pth", net_state())
    assert read_checkpoint(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("container", CONTAINERS)
def test_an_mmengine_file_loads_without_mmengine(container: str, tmp_path: Path) -> None:
    """message_hub holds HistoryBuffers around NumPy arrays; the class is not installed where the file is read."""
    name = "mmengine.logging.history_buffer"

    def buffer(kind: type) -> Any:
        made = kind()
        made._log_history, made._count_history, made._last = np.arange(3.0), np.ones(3, np.int64), np.float64(2)
        return made

    payload = {
        "meta": {"epoch": 20, "seed": np.int64(5)},
        "message_hub": {"log_scalars": OrderedDict(loss=pickled_by(name, "HistoryBuffer", buffer))},
        "state_dict": net_state(),
    }
    try:
        path = save(tmp_path / "a.pth", payload, container)
    finally:
        forget("mmengine")
    archive = read_checkpoint(path)
    assert archive.stubs == [f"{name}.HistoryBuffer"]
    assert archive.root["meta"] == {"epoch": 20, "seed": 5}
    assert torch.equal(archive.state["0.weight"], net_state()["0.weight"])


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_file_that_would_run_code_is_refused_and_does_not(container: str, tmp_path: Path) -> None:
    victim = tmp_path / "touched"
    path = save(tmp_path / "a.pth", {"state_dict": net_state(), "meta": Calls(os.system, f"touch {victim}")}, container)
    assert "system, which could run code" in refusal(path)
    assert not victim.exists()


def test_a_bare_pickle_that_would_run_code_is_refused_by_name(tmp_path: Path) -> None:
    for i, data in enumerate([reduce_pickle("os", "system", "x"), b"cos\nsystem\n(S'x'\ntR.", pickle.dumps(eval, 0)]):
        (tmp_path / f"{i}.pkl").write_bytes(data)
        assert "could run code" in refusal(tmp_path / f"{i}.pkl")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "is empty"),
        (b"hello world\n", "is no checkpoint"),
        (b"classes:\n  - car\n", "not a pickle"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "a JPEG image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"PK\x03\x04", "cut short or damaged"),
        (b"\x00" * 64, "is no checkpoint"),
        (pickle.dumps({"a": np.zeros(3)}, 2), "not one that torch.save writes"),
        (struct.pack("<Q", 2) + b"{]" + b"\0" * 8, "cut short or damaged"),
    ],
)
def test_other_files_are_named_for_what_they_are(data: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(data)
    assert complaint in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        ({}, "empty state dict"),
        ({"state_dict": {}}, "empty state dict"),
        ([1, 2], "holds a list"),
        ({"epoch": 1, "lr": 0.1}, "holds no state dict (its entries: epoch, lr)"),
        ({"state_dict": {"a": torch.zeros(1), "b": 3}}, "holds int under 'b', not a tensor"),
        ({"state_dict": {1: torch.zeros(1)}}, "under '1', not a tensor"),
        ({"model_state": {"a": torch.zeros(1)}}, "OpenPCDet"),
        (nn.Linear(1, 1), "pickled object (torch.nn.modules.linear.Linear)"),
        ({"state_dict": {"a": torch.zeros(2, device="meta")}}, "under 'a', not a tensor"),
    ],
)
def test_files_without_a_state_dict_say_what_they_hold(payload: Any, complaint: str, tmp_path: Path) -> None:
    assert complaint in refusal(save(tmp_path / "a.pth", payload))


def test_places_that_are_no_files(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith("is a folder")
    assert refusal(tmp_path / "none.pth").startswith("no such file")
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe").startswith("is not a regular file")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    path = save(tmp_path / "a.pth", net_state())
    monkeypatch.setattr("builtins.open", denied)  # root may read everything, so chmod would prove nothing
    assert refusal(path).startswith("may not be read")


def test_archives_that_torch_does_not_write(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not one that torch.save writes" in refusal(path)
    source = save(tmp_path / "b.pth", {"state_dict": net_state()})
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    assert "compressed" in refusal(path)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, b"big" if info.filename.endswith("byteorder") else old.read(info))
    assert "big byte order" in refusal(path)


def test_a_storage_entry_of_another_length_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "b.pth", {"state_dict": net_state()})
    for change in (lambda raw: raw[:-4], lambda raw: raw + b"\0" * 4):
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "a.pth", "w") as new:
            for info in old.infolist():
                raw = old.read(info)
                new.writestr(info.filename, change(raw) if info.filename.endswith("data/0") else raw)
        assert "storage 0 is missing or of another length" in refusal(tmp_path / "a.pth")


def test_a_legacy_storage_of_another_length_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"a": torch.full((7,), 2.5)}, "legacy")
    raw, header = path.read_bytes(), struct.pack("<q", 7) + struct.pack("<f", 2.5)
    assert raw.count(header) == 1
    path.write_bytes(raw.replace(header, struct.pack("<q", 6) + struct.pack("<f", 2.5)))
    assert "has another length than stated" in refusal(path)


def test_a_flipped_bit_in_the_weights_is_noted(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"state_dict": {"a": torch.full((64,), 1.0)}})
    raw = bytearray(path.read_bytes())
    raw[raw.find(struct.pack("<f", 1.0) * 4)] ^= 1
    path.write_bytes(raw)
    assert any("checksums" in note for note in read_checkpoint(path).notes)


def small(container: str, folder: Path) -> bytes:
    payload = {"meta": {"a": [1, np.float32(2)]}, "state_dict": nn.Conv2d(1, 2, 2).state_dict()}
    if container == "safetensors":
        save_file(payload["state_dict"], folder / "seed")  # type: ignore[arg-type]
    else:
        save(folder / "seed", payload, container)
    return (folder / "seed").read_bytes()


@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_every_truncation_is_refused(container: str, tmp_path: Path) -> None:
    whole = small(container, tmp_path)
    read_checkpoint(tmp_path / "seed")
    for length in [*range(0, min(300, len(whole)), 7), *range(300, len(whole), 61), len(whole) - 1]:
        (tmp_path / "cut").write_bytes(whole[:length])
        refusal(tmp_path / "cut")


@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_never_do_more_than_complain(container: str, tmp_path: Path, data: st.DataObject) -> None:
    """Bytes replaced, removed or inserted: either the file still reads, or there is a CheckpointError."""
    raw = bytearray(small(container, tmp_path))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        new = data.draw(st.binary(max_size=9) | st.sampled_from([b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\0" * 8, b"."]))
        raw[at : at + data.draw(st.integers(0, 9))] = new
    (tmp_path / "fuzzed").write_bytes(raw)
    try:
        archive = read_checkpoint(tmp_path / "fuzzed")
    except CheckpointError as error:
        assert str(error).isprintable(), error  # noqa: PT017
    else:
        assert sum(t.numel() * t.element_size() for t in archive.state.values()) <= 16 * len(raw)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from([b"", b"\x80\x02", b"\x80\x04\x95", b"(", b"c", b"PK\x03\x04", b"\x10\0\0\0\0\0\0\0{"]),
    data=st.binary(max_size=200),
)
def test_random_bytes_are_refused(start: bytes, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "random").write_bytes(start + data)
    refusal(tmp_path / "random")


def test_opening_costs_no_memory_beyond_the_file(tmp_path: Path) -> None:
    """Sizes are lies until the bytes are there: a pickle of a few bytes may not ask for gigabytes."""
    import tracemalloc

    path = save(tmp_path / "a.pth", {"state_dict": {"a": torch.zeros(3)}}, "legacy")
    raw = path.read_bytes()
    lie: Callable[[bytes, bytes], bytes] = lambda old, new: raw.replace(old, new)  # noqa: E731
    tracemalloc.start()
    for data in (lie(b"K\x03", b"\x8a\x06" + b"\xff" * 5 + b"\x00"), lie(b"K\x03", b"J\xff\xff\xff\x7f")):
        assert data != raw
        path.write_bytes(data)
        refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
