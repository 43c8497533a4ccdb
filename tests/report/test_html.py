"""The report as a file: its sections and numbers, what it refuses, and that it needs nothing but itself."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastalter import score_model
from fastalter.altermoma.arena import Layout
from fastalter.criteria import Scores
from fastalter.errors import DataError
from fastalter.fusion import adapt
from fastalter.report.__main__ import main
from fastalter.report.html import figures
from fastalter.report.html.comparisons import read_comparison, sweeps, tables
from fastalter.report.html.evaluations import read_evaluations
from fastalter.report.plot import save_plot
from fastalter.report.summary import branch_counts, layer_counts

from .inputs import RATIO, altermoma, arguments, cell, make_comparison, make_scores, numbers, write_inputs
from .made import METADATA, make_mask

DASH, TIMES = "\u2013", "\u00d7"
VOID = {"meta", "br", "wbr", "hr", "img", "input", "link"}


class Outline(HTMLParser):
    """Tags with their attributes, headings, and whether everything that opens is closed again in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def words(text: str) -> str:
    """What a reader sees: tags out, spaces single."""
    return " ".join(re.sub(r"<[^>]+>", " ", text.replace("<wbr>", "").partition("</style>")[2]).split())


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return write_inputs(tmp_path)


def written(files: dict[str, Path], out: Path, *others: str) -> str:
    assert main(arguments(files, out, *others)) == 0
    return out.read_text(encoding="utf-8")


SECTIONS = {
    ("--scores",): ["scores", "terms"],
    ("--scores", "--mask"): ["kept", "scores", "terms"],
    ("--comparison",): ["beta", "comparison"],
    ("--evaluation",): ["evaluation"],
    ("--scores", "--mask", "--comparison", "--evaluation"): [
        *("kept", "scores", "terms", "beta", "comparison", "evaluation"),
    ],
}


@pytest.mark.parametrize("given", SECTIONS, ids="+".join)
def test_a_section_is_there_when_its_data_is_given(files, tmp_path, given):
    text = written({option: files[option] for option in given}, tmp_path / "r.html")
    assert [a["id"] for a in Outline(text).all("section")] == SECTIONS[given]


def test_the_verb_says_what_it_wrote(files, tmp_path, capsys):
    written(files, tmp_path / "r.html")
    assert capsys.readouterr().out == f"wrote: {tmp_path / 'r.html'}\n"
    written(files, tmp_path / "r.html", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found == {"sections": SECTIONS[tuple(files)], "written": [str(tmp_path / "r.html")]}


def test_the_head_says_what_made_the_scores(files, tmp_path):
    text = words(written(files, tmp_path / "r.html"))
    for part in ("toy", "altermoma at 75 %", "made by hand", "seed", "ab" * 32, "some/where.pth (mit)", "image_size"):
        assert part in text
    assert "32x88" in text
    assert "branch 'lidar': something odd" in text.replace("&#39;", "'")
    assert "1 of 5 layers lose every weight" in text
    titled = written(files, tmp_path / "r.html", "--title", "My <title> & more")
    assert "<h1>My &lt;title&gt; &amp; more</h1>" in titled


def test_the_tables_hold_the_masks_own_counts(files, tmp_path):
    scores = make_scores()
    mask = scores.mask(RATIO)
    text = written(files, tmp_path / "r.html")
    rows = [words("</style>" + row) for row in re.findall(r"<tr>.*?</tr>", text)]
    for count in branch_counts(mask, scores.metadata["branches"]):
        share = f"{100 * count.kept / count.prunable:.1f}"
        assert f"{count.name} {share} {count.kept:,} {count.prunable:,} {count.parameters:,}" in rows
    for layer in layer_counts(mask):
        shape = TIMES.join(map(str, layer.shape))
        name = layer.name.replace("<", "&lt;").replace(">", "&gt;")
        share = f"{100 * layer.kept / layer.size:.1f}"
        assert f"{name} {layer.branch} {shape} {layer.size:,} {layer.kept:,} {share}" in rows
    widths = [float(w) for w in re.findall(r'class="fill" width="([\d.]+)"', text)]
    assert widths == [round(100 * layer.kept / layer.size, 2) for layer in layer_counts(mask)]
    assert text.count('<li class="lost">') == 1


# ---- figures -----------------------------------------------------------------------------------------------------


def rectangles(picture: str, class_: str) -> list[tuple[float, float, float, float]]:
    """(x, y, width, height) of what a path of this class draws."""
    found = re.findall(rf'<path d="([^"]*)" class="{class_}"', picture)
    step = r"M([-\d.]+) ([-\d.]+)h([-\d.]+)v([-\d.]+)h"
    return [tuple(map(float, box)) for data in found for box in re.findall(step, data)]  # type: ignore[misc]


def test_a_bar_lies_on_one_side_of_the_threshold_and_its_height_is_its_share():
    scores = make_scores()
    mask = scores.mask(RATIO)
    flat = scores.flat.double().numpy()
    kept = flat >= mask.threshold
    scale = figures.SignedLog.of(flat)
    picture = str(figures.histogram("camera", flat, kept, mask.threshold, scale))
    (line,) = re.findall(r'<line x1="([\d.]+)"[^>]*class="threshold"', picture)
    stay, go = rectangles(picture, "fill b-camera"), rectangles(picture, "fill removed")
    assert all(x >= float(line) - 0.02 for x, *_ in stay)
    assert all(x + width <= float(line) + 0.02 for x, _, width, _ in go)
    total = sum(height for *_, height in (*stay, *go))
    assert sum(height for *_, height in stay) / total == pytest.approx(kept.mean(), abs=2e-3)


def test_the_page_colours_what_its_mask_keeps(files, tmp_path):
    text = written(files, tmp_path / "r.html")
    mask = make_scores().mask(RATIO)
    kept = mask.kept_by_branch()
    for branch in mask.layout.branches:
        size = sum(entry.size for entry in mask.layout.entries if entry.branch == branch)
        (picture,) = re.findall(rf'<svg [^>]*aria-label="Histogram of the {branch} branch.*?</svg>', text)
        assert f"branch's {size:,} scores, of which {kept[branch]:,} are kept" in picture.replace("&#39;", "'")
        (line,) = re.findall(r'<line x1="([\d.]+)"[^>]*class="threshold"', picture)
        assert all(x >= float(line) - 0.02 for x, *_ in rectangles(picture, f"fill b-{branch}"))
        assert all(x + width <= float(line) + 0.02 for x, _, width, _ in rectangles(picture, "fill removed"))


@pytest.mark.parametrize(
    "scores",
    [np.zeros(9), np.array([1e-30, 5.0]), np.array([-3.0, -2.0]), np.array([0.5, np.nan, np.inf]), np.full(4, 1e300)],
    ids=["zero", "wide", "negative", "not finite", "huge"],
)
def test_odd_scores_are_drawn_inside_the_picture(scores):
    scale = figures.SignedLog.of(scores)
    picture = str(figures.histogram("camera", scores, None, None, scale))
    assert "nan" not in picture
    assert "inf" not in picture.replace("infinite", "")
    boxes = rectangles(picture, "fill b-camera")
    assert boxes
    assert all(x >= 0 and x + width <= figures.WIDTH for x, _, width, _ in boxes)


def test_the_density_counts_every_weight_once():
    terms = make_scores().terms
    deci, reri = terms["deci"].double().numpy(), terms["reri"].double().numpy()
    scale = figures.TermScale.of(deci, reri)
    found = figures.density("camera", deci, reri, scale)
    assert found.counts.sum() + found.outside == len(deci)
    assert found.outside >= 5  # those that are zero
    step = (scale.high - scale.low) / figures.CELLS
    expected = np.zeros_like(found.counts)
    for d, r in zip(deci, reri, strict=True):
        if d > 0 and r > 0:
            column, row = (math.floor((math.log10(v) - scale.low) / step) for v in (d, r))
            if 0 <= column < figures.CELLS and 0 <= row < figures.CELLS:
                expected[column, row] += 1
    assert np.array_equal(found.counts, expected)


def test_the_shades_cover_exactly_the_cells_that_hold_weights():
    terms = make_scores().terms
    deci, reri = terms["deci"].double().numpy(), terms["reri"].double().numpy()
    scale = figures.TermScale.of(deci, reri)
    found = figures.density("lidar", deci, reri, scale)
    shades = figures.levels(int(found.counts.max()))
    picture = str(figures.scatter(found, scale, shades, None, "weights"))
    size = figures.WIDTH - 62
    side = size / figures.CELLS
    area = sum(width * height for _, _, width, height in rectangles(picture, "fill crisp b-lidar"))
    assert area / side**2 == pytest.approx((found.counts > 0).sum(), rel=5e-3)
    assert len(re.findall(r'fill-opacity="', picture)) == len(shades)


@pytest.mark.parametrize(
    ("alpha", "beta", "tau"), [(1, 1, 1e-6), (1, 1, -1e-6), (2, 0.5, 1e-5), (1, -1, 1e-5), (1, 0, 1e-5)]
)
def test_the_dashed_line_is_where_the_score_meets_the_threshold(alpha, beta, tau):
    scale = figures.TermScale(-9, -2)
    empty = figures.Density("camera", np.zeros((figures.CELLS, figures.CELLS), np.int64), 0)
    picture = str(figures.scatter(empty, scale, [1], figures.Line(alpha, beta, tau), "weights"))
    (points,) = re.findall(r'<polyline points="([^"]+)"', picture)
    size = figures.WIDTH - 62
    axes = figures.Axes(scale.low, scale.high, scale.low, scale.high, 46, 8, size, size)
    places = [tuple(map(float, point.split(","))) for point in points.split()]
    assert len(places) > 50
    for x, y in places:
        deci = 10 ** (scale.low + (x - axes.left) / axes.width * (scale.high - scale.low))
        reri = 10 ** (scale.low + (axes.bottom - y) / axes.height * (scale.high - scale.low))
        assert alpha * deci - beta * reri == pytest.approx(tau, abs=2e-3 * (abs(alpha) * deci + abs(beta) * reri))


def test_a_map_is_drawn_with_x_to_the_right_and_y_up(monkeypatch):
    values = np.zeros((4, 6), np.float32)
    values[3, 5] = 1.0  # x and y highest: top right
    seen: list[Any] = []
    monkeypatch.setattr(figures.svg, "picture", lambda indices, *_: seen.append(indices) or "")
    figures.bev("m", values, 1.0, figures.Extent(-4, 4, -6, 6), [])
    assert seen[0].shape == (6, 4)
    assert seen[0][0, 3] == 255
    assert seen[0].sum() == 255


# ---- comparison and evaluation -----------------------------------------------------------------------------------


@pytest.fixture
def comparison(files: dict[str, Path]) -> Any:
    return read_comparison(files["--comparison"])


def test_channel_scores_and_their_mask_are_told_in_channels(tmp_path):
    torch.manual_seed(0)
    camera, lidar = (nn.Sequential(nn.Linear(3, 6), nn.ReLU()) for _ in range(2))
    net = nn.ModuleDict({"camera": camera, "lidar": lidar, "head": nn.Linear(12, 2)})

    def loss(model, x):
        return model["head"](torch.cat([model["camera"](x), model["lidar"](x)], 1)).square().mean()

    fusion = adapt(net, branches={"camera": ["camera"], "lidar": ["lidar"]}, loss=loss)
    batches = [torch.randn(4, 3) for _ in range(5)]
    scores = score_model(fusion, batches, granularity="channel", keep_terms=True, progress=False)
    files = {"--scores": tmp_path / "scores.safetensors", "--mask": tmp_path / "mask.safetensors"}
    scores.save(files["--scores"])
    scores.mask(0.5).save(files["--mask"])
    page = written(files, tmp_path / "report.html")
    text = words(page)
    assert "6 of 12 channels kept" in text
    assert "Channels by branch" in text
    assert "channels in a cell, at least" in text
    assert "weights" not in text


def test_a_comparison_shows_mean_spread_and_the_best(comparison, files, tmp_path):
    table, at_load = tables(comparison, "mean_ap")
    assert table.columns == [(0.8, "before"), (0.8, "after"), (0.9, "before"), (0.9, "after")]
    by_label = {row.label: row.values for row in table.rows}
    assert list(by_label) == ["deci", "altermoma", "beta 0.3", "other", "snip"]
    deci = by_label["deci"][1]
    assert deci.values == pytest.approx([0.7, 0.72])
    assert (deci.mean, deci.spread) == (pytest.approx(mean([0.7, 0.72])), pytest.approx(stdev([0.7, 0.72])))
    assert [label for label, values in by_label.items() if values[1] is not None and values[1].best] == ["deci"]
    assert [label for label, values in by_label.items() if values[3] is not None and values[3].best] == ["snip"]
    assert by_label["snip"][0] is None
    assert (table.dense, at_load.dense) == (0.83, None)
    text = words(written(files, tmp_path / "r.html"))
    assert "deci 0.310 ± 0.014 ★ 0.710 ± 0.014 ★" in text
    assert f"snip {DASH} {DASH} {DASH} 0.650 ± 0.000 ★" in text
    assert "snip 0.450 ± 0.071 ★" in text
    assert tables(comparison, "nd_score")[0].rows[0].values[1].mean == pytest.approx(0.355)


def test_settings_that_differ_under_one_name_are_told_apart(tmp_path):
    document = make_comparison()
    document["cells"] = [{**cell("", 0.9, 0, 0.5), **altermoma("altermoma", beta)} for beta in (0.5, 2.0)]
    (tmp_path / "c.json").write_text(json.dumps(document))
    (table,) = tables(read_comparison(tmp_path / "c.json"), "mean_ap")[:1]
    assert [row.label for row in table.rows] == ["altermoma (beta 0.5)", "altermoma (beta 2)"]


def test_the_sweep_takes_what_differs_in_beta_alone(comparison):
    (found,) = sweeps(comparison)
    assert found.regime == "trained"
    assert found.deci_at_zero
    assert [curve.label for curve in found.curves] == ["80 %", "90 %"]
    assert [x for x, _, _ in found.curves[0].points] == [0.0, 0.3, 1.0]  # not the 2 of other norms
    assert [y for _, y, _ in found.curves[1].points] == pytest.approx([0.61, 0.51, 0.41])
    assert found.curves[0].points[0][2] == pytest.approx(stdev([0.7, 0.72]))


def test_the_settings_may_be_flat_and_the_quotient_counts(tmp_path):
    document = make_comparison()
    document["cells"] = [
        cell("altermoma", 0.9, 0, 0.5, settings={"alpha": a, "beta": b}) for a, b in ((1, 0), (2, 1), (1, 1))
    ]
    (tmp_path / "c.json").write_text(json.dumps(document))
    (found,) = sweeps(read_comparison(tmp_path / "c.json"))
    assert [x for x, _, _ in found.curves[0].points] == [0.0, 0.5, 1.0]
    assert not found.deci_at_zero


def test_an_evaluation_is_a_table_of_its_states(files, tmp_path):
    folder = tmp_path / "out"
    whole, single = read_evaluations([folder / "evaluation.json", folder / "lidar" / "metrics_summary.json"])
    assert [(row.state, row.mean_ap) for row in whole.rows] == [("none", 0.77), ("camera", 0.22)]
    assert [(row.state, row.nd_score) for row in single.rows] == [("lidar", 0.055)]
    assert single.title == f"{folder}: toy, split val"
    text = words(written(files, tmp_path / "r.html"))
    assert f"camera 0.220 0.110 0.310 0.260 {DASH} 1.500 0.720" in text


# ---- one file, the same file -------------------------------------------------------------------------------------


def test_nothing_is_fetched_and_nothing_runs(files, tmp_path):
    text = written(files, tmp_path / "r.html")
    outline = Outline(text)
    assert not {"script", "link", "iframe", "object", "embed", "img"} & {tag for tag, _ in outline.tags}
    for _, attributes in outline.tags:
        for name in ("src", "href", "xlink:href", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_the_page_can_be_walked_without_eyes(files, tmp_path):
    outline = Outline(written(files, tmp_path / "r.html"))
    assert outline.wrong == []
    assert outline.open == []
    assert outline.all("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(outline.all("caption")) == len(outline.all("table")) > 5
    for drawing in outline.all("svg"):
        assert drawing.get("aria-hidden") == "true" or (drawing["role"] == "img" and drawing["aria-label"])
    ids = [a["id"] for _, a in outline.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for _, a in outline.tags if "aria-labelledby" in a} <= set(ids)
    assert {(a["href"] or "")[1:] for a in outline.all("a")} <= set(ids)


def test_names_from_a_file_stay_text(tmp_path, files):
    evil = "</style><script>alert(1)</script><img src=x onerror=alert(1)>\"'"
    scores = make_scores()
    scores.metadata |= {"model": evil, "data": evil, "warnings": [evil]}
    scores.metadata["checkpoint"]["path"] = evil
    scores.save(files["--scores"])
    scores.mask(RATIO).save(files["--mask"])
    document = make_comparison()
    document["cells"][0]["method"] = document["regimes"][0] = evil
    for row in document["cells"]:
        row["regime"] = evil
    files["--comparison"].write_text(json.dumps(document))
    states = {evil: numbers(0.5)}
    files["--evaluation"].write_text(json.dumps({"model": evil, "data": evil, "states": states}))
    outline = Outline(written(files, tmp_path / "r.html", "--title", evil))
    assert not outline.all("script")
    assert not outline.all("img")
    assert len(outline.all("style")) == 1
    assert outline.wrong == []


def test_the_same_inputs_give_the_same_bytes(files, tmp_path):
    first = written(files, tmp_path / "a.html")
    command = [sys.executable, "-m", "fastalter.report", *arguments(files, tmp_path / "b.html")]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "b.html").read_text(encoding="utf-8") == first
    assert not re.search(r"20\d\d-\d\d-\d\d", first)


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_the_plot_of_the_same_counts_has_the_same_bytes(tmp_path, kind):
    counts = branch_counts(make_mask(), METADATA["branches"])
    for name in ("a", "b"):
        save_plot(tmp_path / name, layers=layer_counts(make_mask()), branches=counts, title="t", kind=kind)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert not re.search(rb"20\d\d-\d\d-\d\d|CreationDate", (tmp_path / "a").read_bytes())


# ---- odd and bad input -------------------------------------------------------------------------------------------


def test_scores_without_a_mask_or_with_nothing_kept_have_no_threshold(tmp_path, files):
    alone = written({"--scores": files["--scores"]}, tmp_path / "r.html")
    assert 'class="threshold"' not in alone
    assert "grey ones go" not in alone
    make_scores().mask(1 - 1e-9).save(files["--mask"])
    nothing = written(files, tmp_path / "r.html")
    assert "none: nothing is kept" in nothing
    assert 'class="threshold"' not in nothing


def test_scores_that_are_not_finite_are_counted(tmp_path):
    scores = make_scores()
    scores.flat[:2] = math.nan
    scores.terms.clear()
    scores.save(tmp_path / "s.safetensors")
    text = written({"--scores": tmp_path / "s.safetensors"}, tmp_path / "r.html")
    assert "2 scores of camera are not finite" in words(text)
    assert 'id="terms"' not in text


def other_mask(files: dict[str, Path], **changes: Any) -> None:
    scores = make_scores()
    scores.metadata |= changes
    scores.mask(RATIO).save(files["--mask"])


def other_weights(files: dict[str, Path]) -> None:
    flat = make_scores()
    layout = Layout.from_json([[f"{name}2", shape, branch] for name, shape, branch in flat.layout.to_json()])
    Scores(flat.flat, layout, flat.metadata).mask(RATIO).save(files["--mask"])


def other_document(files: dict[str, Path], **changes: Any) -> None:
    files["--comparison"].write_text(json.dumps({**make_comparison(), **changes}))


def broken_cell(files: dict[str, Path], **changes: Any) -> None:
    other_document(files, cells=[{**cell("deci", 0.9, 0, 0.5), **changes}])


def untold(files: dict[str, Path], key: str) -> None:
    scores = make_scores()
    del scores.metadata[key]
    scores.save(files["--scores"])


BAD = {
    "another checkpoint's mask": (
        lambda f: other_mask(f, checkpoint={"sha256": "cd" * 32}),
        "was made from checkpoint",
    ),
    "another criterion's mask": (lambda f: other_mask(f, method="snip"), "the criterion differs (snip, not altermoma)"),
    "another run's mask": (lambda f: other_mask(f, seed=4), "the seed differs (4, not 3)"),
    "another model's mask": (other_weights, "are of different models"),
    "no mask file": (lambda f: f["--mask"].unlink(), "no such file"),
    "scores for a mask": (lambda f: f.update({"--mask": f["--scores"]}), "expected fastalter mask, found scores"),
    "scores that are no file": (lambda f: f["--scores"].write_text("x"), "not a readable safetensors file"),
    "scores without a model": (lambda f: untold(f, "model"), "does not say its model"),
    "scores without counts": (lambda f: untold(f, "branches"), "does not count the weights"),
    "no comparison file": (lambda f: f["--comparison"].unlink(), "no such file"),
    "a comparison that is no JSON": (lambda f: f["--comparison"].write_text("{"), "not readable as JSON"),
    "a comparison in another encoding": (lambda f: f["--comparison"].write_bytes(b"\xff\xfe{"), "not readable as JSON"),
    "a comparison of another kind": (lambda f: other_document(f, kind="x"), "not a comparison"),
    "a comparison without cells": (lambda f: other_document(f, cells={}), "cells is not a list"),
    "a comparison that is empty": (lambda f: other_document(f, cells=[], dense={}), "no cells"),
    "a cell without a ratio": (lambda f: broken_cell(f, ratio=None), "cells[0].ratio is None"),
    "a cell with a NaN": (
        lambda f: broken_cell(f, after={"mean_ap": math.nan, "nd_score": 0.1}),
        "cells[0].after.mean_ap is nan",
    ),
    "a cell that is a list": (lambda f: other_document(f, cells=[[]]), "cells[0] is not an object"),
    "no evaluation file": (lambda f: f["--evaluation"].unlink(), "no such file"),
    "an evaluation without numbers": (lambda f: f["--evaluation"].write_text("[1]"), "no numbers of an evaluation"),
    "an evaluation without mAP": (lambda f: f["--evaluation"].write_text("{}"), "no numbers of an evaluation"),
    "an mAP that is null": (
        lambda f: f["--evaluation"].write_text(json.dumps({**numbers(0.5), "mean_ap": None})),
        "mAP or NDS is not a number",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(files, tmp_path, capsys, case):
    spoil, reason = BAD[case]
    spoil(files)
    out = tmp_path / "r.html"
    out.write_text("old")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(arguments(files, out)) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("error: ")
    assert streams.err.count("\n") == 1
    assert reason in streams.err
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "nothing to report"),
        (["--mask", "m"], "give --scores"),
        (["--comparison", "c", "--checkpoint", "k"], "--checkpoint goes with --scores"),
        (["--scores", "s", "--data", "synthetic"], "--data goes with --checkpoint"),
        (["--scores", "r.html"], "is also --scores"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, capsys, monkeypatch, given, reason):
    monkeypatch.chdir(tmp_path)
    assert main([*given, "--out", "r.html"]) == 2
    assert reason in capsys.readouterr().err


def test_a_comparison_is_refused_from_python_too(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_comparison(tmp_path / "missing.json")


def test_a_nan_in_a_map_or_an_empty_scale_is_drawn_as_nothing():
    values = np.array([[math.nan, 1.0], [2.0, 0.0]], np.float32)
    for top in (0.0, 2.0):
        assert "nan" not in str(figures.bev("m", values, top, figures.Extent(0, 1, 0, 1), []))
