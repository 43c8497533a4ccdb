"""Criteria by name or as functions, their settings, the ratio that scores are for, and the terms they are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fastalter
from fastalter.artifacts import write_artifact
from fastalter.criteria import CRITERIA, Problem, Ranking
from fastalter.criteria.gradients import mean_gradients
from fastalter.errors import MaskError, ScoringError
from tests.altermoma.oracle import gradients
from tests.criteria.cases import Case, assert_close


def flat_size(problem: Problem, *, power: float = 1.0, sign: int = 1) -> Ranking:
    """A criterion of one's own: the size of a weight to a power."""
    ranking = CRITERIA["magnitude"](problem)
    ranking.score = sign * ranking.score**power
    return ranking


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [
        ("snap", None, r"method 'snap' is not known; there are: altermoma, deci, snip, magnitude, random, synflow"),
        (3, None, r"method is 3; give a name"),
        ("snip", {"lr": 0.1}, r"method 'snip' has no setting 'lr'; it takes: none"),
        ("altermoma", {"lr": 0.1}, r"method 'altermoma' has no setting 'lr'; it takes: none"),
        ("prospr", {"step": 3}, r"method 'prospr' has no setting 'step'; it takes: steps, lr, order"),
        ("prospr", {"steps": "3"}, r"method 'prospr': steps is '3'; give an integer, such as 3"),
        ("prospr", {"steps": True}, r"steps is True; give an integer"),
        ("prospr", {"lr": float("nan")}, r"lr is nan; give a finite number, such as 0.1"),
        ("prospr", {"order": 1}, r"order is 1; give a text, such as 'auto'"),
        ("prospr", {"order": "second"}, r"order='second'; give .* one of auto, full, first"),
        ("prospr", {"steps": -1}, r"prospr: steps=-1"),
        ("synflow", {"iterations": 0}, r"synflow: iterations=0; give 1 or more"),
        ("imp", {"rounds": 0}, r"imp: rounds=0"),
        ("imp", {"steps": 0}, r"imp: .*steps=0"),
        ("imp", {"lr": 0}, r"imp: .*lr=0"),
        ("modalfisher", {"rounds": 0}, r"modalfisher: rounds=0"),
        ("modalfisher", {"rounds": "3"}, r"modalfisher: rounds is '3'; give an integer, such as 5"),
        ("modalfisher", {"share": 1.5}, r"modalfisher: .*share=1.5"),
        ("modalfisher", {"steps": -1}, r"modalfisher: .*steps=-1"),
        ("modalfisher", {"lr": 0.0}, r"modalfisher: .*lr=0"),
        (flat_size, {"base": 2}, r"method 'flat_size' has no setting 'base'; it takes: power, sign"),
        (lambda problem, needed: None, None, r"needs the setting 'needed'"),
        (lambda problem: 3, None, r"returned a int; return a fastalter.criteria.Ranking"),
        (lambda p: Ranking((r := CRITERIA["magnitude"](p)).layout, r.score[1:]), None, r"its score is \[\d+\]"),
        (lambda p: Ranking((r := CRITERIA["magnitude"](p)).layout, r.score.half()), None, r"float16; make it"),
    ],
)
def test_what_cannot_be_is_refused(method: Any, settings: Any, says: str) -> None:
    with pytest.raises(ScoringError, match=says):
        Case("small").score(method, settings=settings)


@pytest.mark.parametrize("ratio", [1.0, -0.1, float("nan")])
def test_a_ratio_outside_the_range_is_refused_before_the_work(ratio: float) -> None:
    case = Case("small")
    with pytest.raises(MaskError, match=r"in \[0, 1\)"):
        case.score("synflow", ratio=ratio)
    assert all(backbone.calls == 0 for backbone in case.net.backbones.values())


def test_a_criterion_of_ones_own_is_a_function() -> None:
    case = Case("small")
    scores = case.score(flat_size, settings={"power": 2}, alpha=0.5)
    assert torch.equal(scores.flat, case.score("magnitude").flat.square())
    assert scores.metadata["method"] == "flat_size"
    assert scores.metadata["settings"].items() >= {"power": 2, "sign": 1, "alpha": 0.5, "bn": "train"}.items()


def test_a_criterion_of_ones_own_has_the_gradients_and_the_model_as_it_was() -> None:
    case = Case("small")
    before = {name: buffer.clone() for name, buffer in case.net.named_buffers()}

    def gradient(problem: Problem) -> Ranking:
        arena = mean_gradients(problem)
        assert all(torch.equal(buffer, before[name]) for name, buffer in case.net.named_buffers())
        return Ranking(arena.layout, arena.grad.flat)

    expected = gradients(case.net, case.loss, case.batches, [], "train")
    assert_close(case.score(gradient), {name: expected[name] for name in case.branch_of()})


def test_metadata_holds_the_settings_that_the_method_has(tmp_path: Path) -> None:
    case = Case("user")
    scores = case.score("synflow", settings={"iterations": 2, "forward": case.forward})
    scores.save(tmp_path / "scores")
    settings = fastalter.Scores.load(tmp_path / "scores").metadata["settings"]
    assert settings == {"bn": "train", "iterations": 2, "forward": "<lambda>"}


@pytest.mark.parametrize(("method", "settings"), [("synflow", {"iterations": 3}), ("imp", {"rounds": 2, "steps": 2})])
def test_scores_for_one_ratio_give_no_other_mask(method: str, settings: dict[str, int], tmp_path: Path) -> None:
    scores = Case("small").score(method, settings=settings, ratio=0.9)
    scores.save(tmp_path / "scores")
    for these in (scores, fastalter.Scores.load(tmp_path / "scores")):
        assert these.metadata["for_ratio"] == 0.9
        assert these.mask(0.9).kept_total == round(0.1 * scores.layout.size)
        with pytest.raises(MaskError, match=rf"ratio is 0.8: these scores of {method} are for 0.9 alone; score again"):
            these.mask(0.8)


def test_scores_for_any_ratio_give_every_mask() -> None:
    scores = Case("small").score("snip", ratio=0.9)
    assert "for_ratio" not in scores.metadata
    assert scores.mask(0.5).kept_total == round(0.5 * scores.layout.size)


def test_the_floor_of_a_mask_reaches_the_selection() -> None:
    case = Case("small")
    with torch.no_grad():
        case.net.head.weight.mul_(1e-6)
    scores = case.score("magnitude")
    assert scores.mask(0.8).kept["head.weight"] == 0
    floored = scores.mask(0.8, min_keep=3)
    assert floored.kept["head.weight"] == 3
    assert floored.kept_total == scores.mask(0.8).kept_total


def test_a_mask_says_what_its_scores_were_made_with() -> None:
    mask = Case("small").score("prospr", settings={"steps": 1}, seed=3).mask(0.8)
    assert mask.metadata["settings"] == {"bn": "train", "steps": 1, "lr": 0.1, "order": "auto"}
    assert (mask.metadata["method"], mask.metadata["seed"]) == ("prospr", 3)


def test_terms_are_what_altermoma_scores_are_made_of(tmp_path: Path) -> None:
    case = Case("small")
    scores = case.score("altermoma", alpha=0.7, beta=1.3, keep_terms=True)
    deci, reri = scores.terms["deci"], scores.terms["reri"]
    assert list(scores.terms) == ["deci", "reri"]
    assert torch.allclose(0.7 * deci - 1.3 * reri, scores.flat, rtol=0, atol=1e-15)
    for branch in scores.layout.branches:
        inside = scores.layout.range(branch)
        assert [float(t[inside].sum()) for t in (deci, reri)] == pytest.approx([1, 1], abs=1e-9)
    assert torch.equal(scores.flat, case.score("altermoma", alpha=0.7, beta=1.3).flat)
    scores.save(tmp_path / "scores")
    again = fastalter.Scores.load(tmp_path / "scores")
    assert torch.equal(again.flat, scores.flat)
    assert list(again) == list(scores)
    assert {name: term.tolist() for name, term in again.terms.items()} == {"deci": deci.tolist(), "reri": reri.tolist()}
    assert "terms" not in again.metadata


def test_without_terms_there_are_none(tmp_path: Path) -> None:
    scores = Case("small").score("altermoma")
    scores.save(tmp_path / "scores")
    assert scores.terms == fastalter.Scores.load(tmp_path / "scores").terms == {}
    assert Case("small").score("snip", keep_terms=True).metadata["warnings"] == [
        "keep_terms: snip scores have no terms to keep"
    ]


def test_a_file_that_lost_a_term_is_refused(tmp_path: Path) -> None:
    scores = Case("small").score("magnitude")
    facts = {"layout": scores.layout.to_json(), "terms": ["deci"]}
    write_artifact(tmp_path / "scores", "scores", {name: scores[name] for name in scores}, facts)
    with pytest.raises(MaskError, match=r"scores of deci/backbones.camera.body.0.weight are missing"):
        fastalter.Scores.load(tmp_path / "scores")
