"""The page in a real browser: it asks for nothing, complains of nothing, and everything on it can be seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdxl_ray.report.build import write_report
from tests.report.browser import chromium, visit
from tests.report.synthetic import make, several_photo_counts

pytestmark = pytest.mark.slow

WIDTHS = (1280, 390)
#: Every image and plot with its size on the page, and whether an image has been decoded.
SEEN = """
[...document.querySelectorAll('img, svg')].map(e => {
  const r = e.getBoundingClientRect();
  return {
    what: e.getAttribute('alt') || e.getAttribute('aria-label'),
    width: r.width, height: r.height,
    shown: e.checkVisibility({opacityProperty: true, visibilityProperty: true}),
    decoded: e.tagName !== 'IMG' || (e.complete && e.naturalWidth > 0),
  };
})
"""
#: Text of plots as large as it is drawn, in pixels.
TEXT = "[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height)"
#: Things whose right edge is beyond the page, other than what scrolls by itself.
BEYOND = """
[...document.querySelectorAll('body *')].filter(e =>
  !e.parentElement.closest('.scroll') && !e.closest('svg') && e.checkVisibility() &&
  e.getBoundingClientRect().right > document.documentElement.clientWidth + 1
).map(e => e.outerHTML.slice(0, 80))
"""
#: Contrast of every text against the page (WCAG 2.2): the worst.
CONTRAST = """
(() => {
  const channel = v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const of = c => { const l = light(c); return (Math.max(l, paper) + 0.05) / (Math.min(l, paper) + 0.05); };
  const words = [...document.querySelectorAll('p, h1, h2, h3, th, td, dt, dd, figcaption, a, li, summary, svg text')];
  return Math.min(...words.filter(e => e.checkVisibility() && e.textContent.trim()).map(e => {
    const style = getComputedStyle(e);
    return of(e.closest('svg') ? style.fill : style.color);
  }));
})()
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make(tmp_path_factory.mktemp("runs"))).html


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_whole_and_quiet(browser: Any, page: Path, width: int) -> None:
    with visit(browser, page, width) as opened:
        seen = opened.page.evaluate(SEEN)
        assert opened.said == []
        assert [url for url in opened.asked if not url.startswith("data:")] == [page.as_uri()]
        assert len(seen) > 40
        for one in seen:
            assert one["what"] and one["shown"] and one["decoded"], one
            assert one["width"] >= 40 and one["height"] >= 40, one
        assert opened.page.evaluate("document.documentElement.scrollWidth") == width
        assert opened.page.evaluate(BEYOND) == []
        assert min(opened.page.evaluate(TEXT)) >= 9


def test_opening_every_detail_breaks_nothing(browser: Any, page: Path) -> None:
    with visit(browser, page, 390) as opened:
        opened.page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
        assert opened.page.evaluate("document.documentElement.scrollWidth") == 390


def test_nothing_moves_while_the_page_loads(browser: Any, page: Path) -> None:
    with visit(browser, page, 1280) as opened:
        shifts = opened.page.evaluate(
            "new Promise(done => { let sum = 0; new PerformanceObserver(list => {"
            " for (const e of list.getEntries()) sum += e.value; }).observe({type: 'layout-shift', buffered: true});"
            " setTimeout(() => done(sum), 300); })"
        )
        assert shifts == 0
        sizes = opened.page.evaluate("[...document.images].every(e => e.getAttribute('width') > 0)")
        assert sizes


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_both_schemes(browser: Any, page: Path, scheme: str) -> None:
    with visit(browser, page, 1280, scheme) as opened:
        assert opened.page.evaluate(CONTRAST) >= 4.5
        dark = opened.page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")


def test_the_first_screen_has_the_answer_and_the_images(browser: Any, page: Path) -> None:
    with visit(browser, page, 1280) as opened:
        first = opened.page.evaluate(
            "[...document.querySelectorAll('h1, .lead, .tiles img, .stats .value')]"
            ".map(e => e.getBoundingClientRect().bottom)"
        )
        assert len(first) >= 10
        assert max(first) <= 800


def test_it_prints_in_light_colours_on_few_pages(browser: Any, page: Path) -> None:
    with visit(browser, page, 1280, "dark") as opened:
        opened.page.emulate_media(media="print", color_scheme="dark")
        assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        pdf = opened.page.pdf(format="A4")
        assert 4 <= pdf.count(b"/Type /Page\n") <= 20


def test_a_thin_report_is_whole_too(browser: Any, tmp_path: Path) -> None:
    home = make(tmp_path, arms=("lora",))
    for part in (home / "records").glob("pictures-*"):
        part.unlink()
    html = write_report(home).html
    with visit(browser, html, 390) as opened:
        assert opened.said == []
        assert opened.page.evaluate("document.documentElement.scrollWidth") == 390


def test_photo_counts_are_drawn(browser: Any, tmp_path: Path) -> None:
    home = make(tmp_path)
    several_photo_counts(home)
    with visit(browser, write_report(home).html, 1280) as opened:
        plot = opened.page.locator("svg[aria-label*='1 photos']")
        assert plot.count() == 1
        assert plot.bounding_box()["width"] > 200
