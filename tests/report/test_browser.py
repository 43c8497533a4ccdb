"""The report in a real browser: silent, self-contained, readable on a phone, in the dark and on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fastalter.report.__main__ import main

from .browser import NAMES, VARIABLE, Chromium, Page, find
from .inputs import arguments, write_inputs

WIDTHS = (360, 1280)
SCHEMES = ("light", "dark")
A4 = 688
"""CSS pixels between the margins of an A4 page."""

CONTRAST = """
(() => {
  const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let count = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.getClientRects().length) continue;
    count += 1;
    const style = getComputedStyle(element);
    const ink = light(rgb(element.closest('svg') ? style.fill : style.color)), paper = light(behind(element));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (ratio < 4.5) poor.push([walker.currentNode.textContent.trim().slice(0, 40), ratio]);
  }
  return {poor, count};
})()
"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
CUT = """
[...document.querySelectorAll('.scroll')].filter(box =>
  getComputedStyle(box).overflowX !== 'visible'
  || box.querySelector('table').getBoundingClientRect().right > document.body.getBoundingClientRect().right + 1
).map(box => box.textContent.trim().slice(0, 40))
"""
HIDDEN = "[...document.querySelectorAll('details table')].filter(table => !table.checkVisibility()).length"
PAPER = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    binary = find()
    if binary is None:
        pytest.skip(f"no browser: install chromium ({', '.join(NAMES)} on the path), or let {VARIABLE} name it")
    with Chromium(binary, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With every section that needs no checkpoint."""
    folder = tmp_path_factory.mktemp("report")
    assert main(arguments(write_inputs(folder), folder / "report.html")) == 0
    return folder / "report.html"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_opens_silently_and_fits(chromium, report, width, scheme):
    with chromium.open(report, width, scheme) as page:
        assert page.said() == []
        assert {url for url in page.requested() if not url.startswith("data:")} == {report.resolve().as_uri()}
        assert page.evaluate("document.documentElement.clientWidth") == width
        assert page.evaluate(OVERFLOW) == 0
        assert page.evaluate("document.querySelectorAll('section').length") == 6
        assert page.screenshot().startswith(b"\x89PNG")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_word_stands_out(chromium, report, width, scheme):
    with chromium.open(report, width, scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        found = page.evaluate(CONTRAST)
        assert found["count"] > 200
        assert found["poor"] == []


def test_dark_is_dark_and_the_drawings_follow(chromium, report):
    def colours(page: Page) -> list[str]:
        parts = ("text", ".fill", ".threshold", ".grid")
        return [
            page.evaluate(f"(s => s.fill + s.stroke)(getComputedStyle(document.querySelector('svg {p}')))")
            for p in parts
        ]

    with chromium.open(report, scheme="light") as page:
        light, paper = colours(page), page.evaluate(PAPER)
    with chromium.open(report, scheme="dark") as page:
        dark, night = colours(page), page.evaluate(PAPER)
    assert paper == "rgb(255, 255, 255)"
    assert sum(map(int, night[4:-1].split(","))) < 120
    assert all(one != other for one, other in zip(light, dark, strict=True))


def test_a_wide_table_scrolls_in_its_own_box(chromium, report):
    wider = "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth).length"
    with chromium.open(report, 360) as page:
        assert page.evaluate(wider) > 0
        assert page.evaluate("[...document.querySelectorAll('.scroll')].every(box => box.tabIndex === 0)")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_on_paper_it_is_white_and_whole(chromium, report, scheme):
    with chromium.open(report, A4, scheme) as page:
        dark = [{"name": "prefers-color-scheme", "value": scheme}]
        page.call("Emulation.setEmulatedMedia", media="print", features=dark)
        assert page.evaluate(PAPER) == "rgb(255, 255, 255)"
        assert page.evaluate(OVERFLOW) == 0
        assert page.evaluate(CUT) == []
        assert page.evaluate(HIDDEN) == 0
        assert page.evaluate(CONTRAST)["poor"] == []
    with chromium.open(report, 1280, scheme) as page:
        pdf = page.pdf()
        assert pdf.startswith(b"%PDF")
        assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") > 1


def test_nothing_moves_for_who_wants_no_motion(chromium, report):
    for wish, behaviour in (("reduce", "auto"), ("no-preference", "smooth")):
        with chromium.open(report) as page:
            page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": wish}])
            assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == behaviour


def test_the_browser_would_notice(chromium, tmp_path):
    """What the tests above look for is seen where it is there."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<meta name=viewport content='width=device-width'><body style='background:#fff'>"
        "<img src='http://127.0.0.1:9/x.png'><script>console.error('broken')</script>"
        "<p style='color:#ccc;width:900px'>pale</p><div class=scroll style='overflow:auto'><table></table></div>"
        "<details><summary>s</summary><table><tr><td>in</table></details>"
    )
    with chromium.open(bad, 360) as page:
        assert any("broken" in text for text in page.said())
        assert "http://127.0.0.1:9/x.png" in page.requested()
        assert page.evaluate(OVERFLOW) > 500
        assert page.evaluate(CONTRAST)["poor"][0][0] == "pale"
        assert len(page.evaluate(CUT)) == 1
        assert page.evaluate(HIDDEN) == 1
