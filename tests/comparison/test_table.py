"""Tables: means, spreads and paired differences, against numbers worked out by hand."""

from __future__ import annotations

import json

import pytest

from fastalter.comparison import paired, rows
from fastalter.comparison.document import document_of, write_document
from fastalter.report.comparison import cell_text
from tests.comparison.made import result

RESULTS = [
    *(result("snip", value, seed=seed) for seed, value in enumerate((0.50, 0.52, 0.54))),
    *(result("deci", value, seed=seed) for seed, value in enumerate((0.60, 0.61, 0.65))),
    result("deci", 0.3, ratio=0.95),
    result("dense", 0.7),
    result("dense", 0.8, seed=1),
]


def test_a_row_is_the_mean_and_the_sample_deviation_over_seeds():
    snip, deci, high, _ = rows(RESULTS)
    assert (snip.method, snip.ratio, snip.mean) == ("snip", 0.9, pytest.approx(0.52))
    assert snip.spread == pytest.approx(0.02)
    assert cell_text(snip) == "0.520 +- 0.020 (3)"
    assert (high.ratio, high.spread, cell_text(high)) == (0.95, None, "0.300 (1)")
    assert deci.mean == pytest.approx(0.62)


def test_differences_are_paired_by_seed():
    snip, deci = rows(RESULTS)[:2]
    ahead = paired(deci, snip)
    assert ahead is not None
    assert (ahead.seeds, ahead.difference) == (3, pytest.approx(0.10))
    assert ahead.spread == pytest.approx(0.01)
    # t = 0.1 / (0.01 / sqrt(3)) = 17.32 with two degrees of freedom
    assert ahead.p == pytest.approx(0.003317, abs=1e-5)


def test_only_common_seeds_are_compared():
    snip, deci, high, _ = rows(RESULTS)
    one = paired(high, snip)
    assert one is not None
    assert (one.seeds, one.difference, one.spread, one.p) == (1, pytest.approx(-0.2), None, None)
    assert paired(rows([result("a", 1.0, seed=7)])[0], deci) is None


def test_a_regime_without_a_state_before_training_has_no_row_there():
    assert rows([result("snip", 0.5, before=None)], when="before") == []
    assert rows([result("snip", 0.5)], when="before")[0].mean == 0.1


def test_the_document_holds_every_cell_and_the_dense_mean(tmp_path):
    document = document_of(RESULTS)
    assert document["kind"] == "fastalter comparison"
    assert document["dense"] == {"trained": {"mean_ap": pytest.approx(0.75), "nd_score": pytest.approx(0.375)}}
    assert len(document["cells"]) == 7
    assert {cell["commit"] for cell in document["cells"]} == {"c0ffee"}
    assert json.loads(write_document(tmp_path / "c.json", RESULTS).read_text()) == document
