"""The experiment's own parts: claims between processes, the page it writes, the controls."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import fastalter
from fastalter.comparison import DENSE
from fastalter.comparison.cell import Cell
from recipes.experiment import regimes, tables, tuning
from recipes.experiment.__main__ import cells
from recipes.experiment.controls import other_batches_in_place_of_reri
from recipes.experiment.methods import ABLATIONS, CONTROLS, MAIN, TUNED, TUNED_AT_LOAD
from recipes.experiment.regimes import kept_batches
from recipes.experiment.work import claimed
from tests.comparison.made import regime, result


def test_a_claimed_cell_is_nobody_elses(tmp_path):
    with claimed(tmp_path / "cell") as mine:
        assert mine
        with claimed(tmp_path / "cell") as other:
            assert not other
        assert (tmp_path / "cell").exists()
    with claimed(tmp_path / "cell") as again:
        assert again


def test_the_claim_of_a_process_that_is_gone_does_not_count(tmp_path):
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    ).stdout
    (tmp_path / "cell").write_text(gone)
    with claimed(tmp_path / "cell") as mine:
        assert mine


@pytest.mark.parametrize("methods", [[DENSE, *MAIN, *CONTROLS, *ABLATIONS], TUNED, TUNED_AT_LOAD])
def test_every_method_has_a_file_of_its_own(methods):
    names = {Cell(regime(), method, 0.9, 0).name for method in methods}
    assert len(names) == len(methods)
    assert not [name for name in names if set(name) & set(" ,")]


def test_no_cell_of_the_table_is_lost_or_there_twice():
    names = [cell.name for cell in cells(seeds=3)]
    assert len(set(names)) == len(names)
    both = {f"{regime}/{method.name}/{ratio}-seed{seed}" for regime in ("trained", "at load") for method in MAIN
            for ratio in (80, 90, 95) for seed in range(3)}  # fmt: skip
    assert {name.replace(" ", "-") for name in both} <= set(names)
    # with 3 seeds each: 3 dense rows; 4 methods trained longer and 5 of channels, at 2 ratios, 6 at load longer at one;
    # controls and ablations, which stand at one place but for beta -1 at three more
    assert len(names) == len(both) + 3 * (3 + 4 * 2 + 5 * 2 + 6 + len(CONTROLS) + 3 + len(ABLATIONS))


def test_training_batches_are_made_once_for_all_cells_of_a_seed(monkeypatch):
    made = []
    monkeypatch.setattr(regimes, "training_batches", lambda spec, **settings: lambda step: made.append(step) or _tiny())
    kept_batches.cache_clear()
    first, again = kept_batches("some data", 2, 0), kept_batches("some data", 2, 0)
    assert first(3) is again(3)
    assert made == [3]
    kept_batches("some data", 2, 1)(3)
    assert made == [3, 3]
    kept_batches.cache_clear()


def _tiny():
    return fastalter.data.load("example", config=fastalter.models.config_of("bevfusion-tiny"), batches=1)[0]


def test_the_block_is_written_anew_and_the_rest_of_the_page_stays(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"above\n{tables.BEGIN}\nold\n{tables.END}\nbelow\n")
    own = [result("modalfisher", 0.6), result("modalfisher", 0.64, seed=1)]
    found = [*own, result("snip", 0.5), result("snip", 0.52, seed=1)]
    found.append(result("dense", 0.7))
    found.append({**result("snip", 0.55), "regime": "trained longer"})
    found[2] |= {"dropped": {"camera": {"mean_ap": 0.12, "nd_score": 0.1}}}
    found[2] |= {"kept": {"camera": 0.02, "lidar": 0.1, "fusion": 0.5}}
    found[3] |= {"kept": {"camera": 0.04, "lidar": 0.2, "fusion": 0.6}}
    (tmp_path / "cells").mkdir()
    monkeypatch.setattr(tables, "read_results", lambda folder: found)
    tables.main(tmp_path / "cells", page)
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith(f"{tables.END}\nbelow\n")
    assert "old" not in text
    assert "mAP 70.0 (1)" in text
    assert "| snip | 51.0 ± 1.4 (2) | +11.0 ± 1.4, p 0.058 | 62.2 and 50.2 |" in text
    assert "| mAP after training, cameras dark | 90 % |\n|---|---|\n| snip | 12.0 (1) |" in text
    assert "LiDAR dark" not in text
    assert "| kept of camera, lidar, fusion, % | 90 % |\n|---|---|\n| snip | 3.0, 15.0, 55.0 |" in text
    longer = text.partition("### Regime: trained longer")[2]
    assert "| 90 %: modalfisher, trained, ahead by |\n" in longer
    assert "| snip | 55.0 (1) | +5.0 |" in longer, "the lead is that of the method trained as it always is"
    assert "not pruned" not in longer.lower()
    assert (tmp_path / "experiment.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "cells" / "comparison.json").exists()


def test_what_is_tuned_is_shown_best_first(tmp_path):
    before = {"mean_ap": 0.1, "nd_score": 0.1}
    for name, mean_ap in (("prospr lr 0.1", 0.3), ("imp lr 0.001", 0.4)):
        method = replace(MAIN[0], name=name)
        Cell(regime(), method, 0.95, tuning.SEED).write(tmp_path, {**result(name, mean_ap), "before": before})
    of_load = {**result("snip", 0.5), "regime": "at load longer", "before": None}
    Cell(regime(name="at load longer"), replace(MAIN[0], name="snip"), 0.9, tuning.SEED).write(tmp_path, of_load)
    shown = [line.split(" | ")[:3] for line in tuning.table(tmp_path).splitlines()[2:]]
    assert shown == [["| trained, 90 %", "imp lr 0.001", "10.0"], ["| trained, 90 %", "prospr lr 0.1", "10.0"],
                     ["| at load longer, 90 %", "snip", ""]]  # fmt: skip


def test_the_control_is_the_difference_of_deci_on_two_halves():
    model = fastalter.models.build("bevfusion-tiny", seed=0)
    batches = [fastalter.data.load("synthetic", config=model.config, batches=1, batch_size=2, seed=3)[0]]
    halves = [[_sample(batches[0], place)] for place in (0, 1)]
    control = fastalter.score_model(model, batches, method=other_batches_in_place_of_reri, progress=False)
    first, second = (fastalter.score_model(model, half, method="deci", progress=False) for half in halves)
    torch.testing.assert_close(control.flat, first.flat - second.flat, rtol=0, atol=1e-9)
    assert float((first.flat - second.flat).abs().max()) > 0


def _sample(batch, place):
    return replace(batch, **{name: value[place : place + 1] for name, value in vars(batch).items()})


@pytest.mark.parametrize("method", MAIN)
def test_the_methods_of_the_table_are_there(method):
    assert method.criterion in fastalter.criteria.CRITERIA
