from __future__ import annotations

import pytest

from fastalter.errors import DataError
from fastalter.outputs import check_outputs, write_all


def test_places_that_cannot_be_written_are_refused(tmp_path):
    free, taken = tmp_path / "a", tmp_path / "in.pth"
    check_outputs({"--out": free, "--mask": None}, {"the checkpoint": taken})
    with pytest.raises(DataError, match=r"--out .* is a folder"):
        check_outputs({"--out": tmp_path}, {})
    with pytest.raises(DataError, match=r"no folder .*missing; make it"):
        check_outputs({"--out": tmp_path / "missing" / "a"}, {})
    with pytest.raises(DataError, match=r"--mask .* is also --out"):
        check_outputs({"--out": free, "--mask": tmp_path / ".." / tmp_path.name / "a"}, {})
    with pytest.raises(DataError, match="is also the checkpoint"):
        check_outputs({"--out": taken}, {"the checkpoint": taken})


def test_all_files_are_written(tmp_path):
    write_all({tmp_path / name: lambda path, name=name: path.write_text(name) for name in "ab"})
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "a", "b": "b"}


@pytest.mark.parametrize(("error", "seen"), [(OSError(28, "no space"), DataError), (ValueError("bug"), ValueError)])
def test_one_failure_leaves_nothing_new_and_nothing_old_changed(tmp_path, error, seen):
    (tmp_path / "a").write_text("old")

    def fail(path):
        path.write_text("half")
        raise error

    with pytest.raises(seen):
        write_all({tmp_path / "a": lambda path: path.write_text("new"), tmp_path / "b": fail})
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "old"}
