"""Cells: where they are kept, and when a kept one still counts."""

from __future__ import annotations

import json

import pytest

from fastalter.altermoma import Reactivation
from fastalter.comparison import Judge, Method, read_results
from fastalter.errors import DataError
from fastalter.training import TrainOptions
from tests.comparison.made import Frames, cell, result, study


def test_a_finished_cell_is_found_again(tmp_path):
    mine, common = cell(), study()
    kept = {**result("snip", 0.5), "key": mine.key(common)}
    path = mine.write(tmp_path, kept)
    assert path == tmp_path / "trained" / "snip" / "90-seed0.json"
    assert mine.read(tmp_path, common) == kept
    assert cell(seed=1).read(tmp_path, common) is None


@pytest.mark.parametrize(
    "other",
    [
        cell(origin={"fusion": "abd"}),
        cell(options=TrainOptions(steps=4)),
        cell(batch_size=3),
        cell(Method("snip", "deci")),
        cell(Method("snip", "snip", {"reactivation": Reactivation(lr=0.5)})),
        cell(Method("snip", "snip", settings={"steps": 2})),
    ],
)
def test_a_cell_made_from_something_else_does_not_count(tmp_path, other):
    common = study()
    other.write(tmp_path, {**result("snip", 0.5), "key": other.key(common)})
    assert cell().read(tmp_path, common) is None


@pytest.mark.parametrize(
    "changed",
    [study(data="other frames"), study(settle=3), study(judge=Judge(Frames("test")))],  # type: ignore[arg-type]
)
def test_the_key_holds_data_and_judge(changed):
    assert cell().key(changed) != cell().key(study())


def test_keys_of_cells_that_were_made_before_channels_stay():
    assert cell().key(study()) == "416cba3498eb02a0"
    assert cell(budget="flops").key(study()) != cell(budget="channels").key(study()) != cell().key(study())


def test_the_key_depends_on_nothing_else():
    assert cell().key(study()) == cell(start=lambda seed: None).key(study(scored=lambda seed, regime: [1]))


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"regime": "trained"})])
def test_a_damaged_cell_is_named(tmp_path, content):
    path = tmp_path / "trained" / "snip" / "90-seed0.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(DataError, match=r"90-seed0.json.*remove it and run again"):
        cell().read(tmp_path, study())
    with pytest.raises(DataError, match=r"90-seed0.json"):
        read_results(tmp_path)


def test_an_empty_folder_is_an_error_and_not_an_empty_table(tmp_path):
    with pytest.raises(DataError, match="no finished cell"):
        read_results(tmp_path)
