"""The pickle machine: equal to pickle on plain data, inert on classes, closed to everything that could run code."""

from __future__ import annotations

import collections
import datetime
import io
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastalter.checkpoint.arrays import ArrayBox
from fastalter.checkpoint.names import Stub
from fastalter.checkpoint.tensors import Storage, rebuild_tensor
from fastalter.checkpoint.unpickler import Unpickler
from fastalter.errors import CheckpointError
from tests.checkpoint.files import Calls, reduce_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def load(data: bytes) -> Any:
    return Unpickler().load(io.BytesIO(data))


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner, inner, inner)
        | st.dictionaries(
            st.text(max_size=4) | st.integers() | st.tuples(st.integers(), st.text(max_size=2)), inner, max_size=3
        )
        | st.sets(st.integers(), max_size=3)
        | st.frozensets(st.text(max_size=2), max_size=3)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3).map(OrderedDict)
        | st.binary(max_size=4).map(bytearray)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(value=PLAIN, protocol=st.sampled_from(PROTOCOLS))
def test_plain_data_comes_out_as_pickle_gives_it(value: Any, protocol: int) -> None:
    found = load(pickle.dumps(value, protocol))
    assert found == value
    assert type(found) is type(value)


def test_shared_and_recursive_containers_stay_shared() -> None:
    inner: list[Any] = [1]
    inner.append(inner)
    found = load(pickle.dumps({"a": inner, "b": inner}))
    assert found["a"] is found["b"]
    assert found["a"][1] is found["a"]


@pytest.mark.parametrize("protocol", range(5))  # torch writes protocol 2; 5 spells arrays another way
def test_numpy_scalars_and_arrays_are_rebuilt_from_their_bytes(protocol: int) -> None:
    array = np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3))
    found = load(pickle.dumps([np.float64(2.5), np.int64(-3), array, np.zeros((0, 2), np.float32)], protocol))
    assert found[:2] == [2.5, -3]
    assert isinstance(found[0], np.float64)
    for box, wanted in zip(found[2:], [array, np.zeros((0, 2), np.float32)], strict=True):
        assert isinstance(box, ArrayBox)
        np.testing.assert_array_equal(box.value, wanted)
        assert box.value is not None
        assert box.value.dtype == wanted.dtype


def test_an_array_of_objects_stays_empty() -> None:
    found = load(pickle.dumps(np.array([{"a": 1}, None], dtype=object)))
    assert isinstance(found, ArrayBox)
    assert found.value is None


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        datetime.datetime(2024, 1, 1),
        collections.defaultdict(list, a=[1]),
        collections.Counter("ab"),
        Path("weights") / "a.pth",
        slice(1, 2),
    ],
)
def test_other_classes_become_inert_stubs(value: Any, protocol: int) -> None:
    machine = Unpickler()
    found = machine.load(io.BytesIO(pickle.dumps(value, protocol)))
    assert isinstance(found, Stub)
    assert found.name in machine.stubs


def test_a_class_that_is_not_installed_is_not_looked_for() -> None:
    data = b"\x80\x02cno_such_package.deep\nThing\n)\x81}X\x01\x00\x00\x00aK\x01sb."
    assert load(data).name == "no_such_package.deep.Thing"
    assert "no_such_package" not in sys.modules


DANGEROUS = [
    ("os", "system"),
    ("posix", "system"),
    ("nt", "system"),
    ("os.path", "join"),
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("builtins", "open"),
    ("builtins", "compile"),
    ("builtins", "list.append"),
    ("__builtin__", "eval"),
    ("sys", "modules"),
    ("runpy", "run_path"),
    ("importlib", "import_module"),
    ("pty", "spawn"),
    ("socket", "socket"),
    ("shutil", "rmtree"),
    ("ctypes", "CDLL"),
    ("webbrowser", "open"),
    ("pickle", "loads"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("torch.serialization", "os.system"),
    ("types", "FunctionType"),
    ("operator", "attrgetter"),
    ("marshal", "loads"),
    ("code", "interact"),
    ("timeit", "timeit"),
]


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(("module", "name"), DANGEROUS)
def test_names_that_run_code_are_refused_by_name(module: str, name: str, protocol: int) -> None:
    with pytest.raises(CheckpointError, match=rf"names {module}\.{name}, which could run code"):
        load(reduce_pickle(module, name, "echo", protocol))


@pytest.mark.parametrize(
    "opcode", [b"(S'touch {0}'\nios\nsystem\n.", b"cos\nsystem\n(S'touch {0}'\ntR.", b"(cos\nsystem\nS'touch {0}'\no."]
)
def test_no_way_of_spelling_a_call_runs_it(opcode: bytes, tmp_path: Path) -> None:
    victim = tmp_path / "touched"
    data = opcode.replace(b"{0}", str(victim).encode())
    with pytest.raises(CheckpointError, match=r"os\.system"):
        load(data)
    assert not victim.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_pickle_would_run_does_not_run(protocol: int, tmp_path: Path) -> None:
    victim = tmp_path / "touched"
    for attack in (
        Calls(os.system, f"touch {victim}"),
        Calls(subprocess.check_output, ["touch", str(victim)]),
        Calls(eval, f"open({str(victim)!r}, 'w')"),
        Calls(os.mkdir, str(victim)),
    ):
        with pytest.raises(CheckpointError, match="could run code"):
            load(pickle.dumps({"meta": attack}, protocol))
        assert not victim.exists()


def test_a_function_that_is_not_known_is_not_called(tmp_path: Path) -> None:
    """The refusals name the usual suspects; what keeps a user safe is that nothing is ever called."""
    victim = tmp_path / "touched"
    module = "tests.checkpoint.test_unpickler"
    found = load(reduce_pickle(module, "touch_for_test", str(victim)))
    assert isinstance(found, Stub)
    assert not victim.exists()
    assert pickle.loads(reduce_pickle(module, "touch_for_test", str(victim))) is None
    assert victim.exists()


def touch_for_test(path: str) -> None:
    Path(path).touch()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"R.",
        b"\x80\x02K\x01)R.",
        b"\x80\x02]K\x01b.",
        b"\x80\x02K\x01K\x02s.",
        b"\x80\x02}K\x01\x85\x85K\x01s.",  # a nested tuple as key: hashing could take for ever
        b"\x80\x02}]K\x01s.",
        b"\x80\x02h\x07.",
        b"\x80\x02X\xff\xff\xff\xffa.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa.",
        b"\x80\x02c__builtin__\nbytes\nJ\x00\x00\x00\x7f\x85R.",  # bytes(2**30) would allocate
        b"\x80\x02\x82\x01.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02ccollections\nOrderedDict\nK\x05\x85R.",
    ],
)
def test_malformed_pickles_are_one_kind_of_error(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"not a pickle that a checkpoint holds \(.+\)"):
        load(data)


def test_the_number_of_opcodes_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastalter.checkpoint.unpickler.MAX_OPCODES", 100)
    load(b"]0" * 45 + b"].")
    with pytest.raises(CheckpointError, match="opcodes"):
        load(b"]0" * 60 + b"].")


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((7,), (1,), 0),
        ((2, 3), (3, 1), 1),
        ((10**9,), (0,), 0),
        ((2,), (1, 1), 0),
        ((-1,), (1,), 0),
        ((2.0,), (1,), 0),
        ((2**62, 2**62), (1, 1), 0),
        ((1,), (1,), 6),
        ((2,), (-1,), 3),
    ],
)
def test_a_view_outside_its_storage_is_refused(size: Any, stride: Any, offset: Any) -> None:
    storage = Storage(torch.arange(6.0))
    with pytest.raises(CheckpointError):
        rebuild_tensor(storage, offset, size, stride)


@settings(deadline=None)
@given(st.data())
def test_views_inside_their_storage_are_those_of_as_strided(data: st.DataObject) -> None:
    flat = torch.arange(70.0)
    size = data.draw(st.lists(st.integers(0, 4), max_size=3))
    base = torch.arange(64)[: int(np.prod(size))].reshape(size)
    order = data.draw(st.permutations(range(len(size))))
    view = base.permute(order)
    found = rebuild_tensor(Storage(flat), 3, tuple(view.shape), view.stride())
    torch.testing.assert_close(found, flat.as_strided(view.shape, view.stride(), 3), rtol=0, atol=0)
