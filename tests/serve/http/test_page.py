"""The page in a real browser: base and tuned at the same seed, adapters, keys of the keyboard, light, dark, a phone."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from tests.report.browser import Visit, chromium, visit
from tests.report.test_browser import BEYOND
from tests.serve.engine.plain import differences, levels

#: Where to keep screenshots, to look at them.
SHOTS = os.environ.get("SDXL_RAY_SCREENSHOTS")
#: Both images are shown, and nothing is being drawn.
DRAWN = "body:has(#draw:not(:disabled)):not(:has(.frame img[hidden]))"
#: Contrast of every text with what is behind it (WCAG 2.2): the worst.
CONTRAST = """
(() => {
  const channel = v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(c)) return light(c); } };
  const texts = [...document.querySelectorAll('h1,h2,p,li,label,legend,summary,button,select,input,textarea,output')];
  return Math.min(...texts.filter(e => e.checkVisibility() && !e.disabled).map(e => {
    const [a, b] = [light(getComputedStyle(e).color), behind(e)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  }));
})()
"""
#: The page's policy forbids fetching the image's address, so its pixels are read from a canvas.
PIXELS = """
async (image) => {
  await image.decode();
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  canvas.getContext('2d').drawImage(image, 0, 0);
  return canvas.toDataURL();
}
"""
pytestmark = [pytest.mark.slow, pytest.mark.shares("url")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


def _shot(seen: Visit, name: str) -> None:
    if SHOTS:
        seen.page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


def _draw(seen: Visit, prompt: str) -> list[Image.Image]:
    """Ask through the form; the two images as they are shown.

    Whether both are drawn in one batch is chance, which may change one level of an image: see `differences`.
    """
    page = seen.page
    page.fill("#prompt", prompt)
    page.fill("#steps", "6")
    page.eval_on_selector_all(".frame img", "all => all.forEach(image => image.hidden = true)")
    page.press("#prompt", "Enter")
    page.wait_for_selector(DRAWN, timeout=60_000)
    shown = [page.evaluate(PIXELS, image) for image in page.query_selector_all(".frame img:not([hidden])")]
    return [Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) for address in shown]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_base_and_tuned_are_drawn_side_by_side(browser: Any, url: str, width: int, scheme: str) -> None:
    with visit(browser, url, width, scheme) as seen:
        page = seen.page
        page.wait_for_selector("#variants .ready")
        _shot(seen, f"empty-{width}-{scheme}")
        assert page.eval_on_selector_all("#panes select", "all => all.map(e => e.value)") == ["base", "round"]
        assert "no such folder" in page.inner_text("#variants .stopped")
        left, right = _draw(seen, "a photo of a dog on the beach")
        assert levels(left, right) > 1
        boxes = [image.bounding_box() for image in page.query_selector_all(".frame img")]
        assert boxes[0]["y"] == boxes[1]["y"]
        assert boxes[0]["width"] > width / 4 - 60
        assert all(
            text.endswith("ms") for text in page.eval_on_selector_all(".time strong", "a => a.map(e => e.innerText)")
        )
        assert "artifact" in page.inner_text(".pane:last-of-type .hash")
        assert page.evaluate(BEYOND) == []
        assert page.evaluate(CONTRAST) >= 4.5
        _shot(seen, f"drawn-{width}-{scheme}")
        assert seen.said == []
        assert {address.split("/")[2] for address in seen.asked if address.startswith("http")} == {url.split("/")[2]}


def test_sliders_change_the_right_image_alone(browser: Any, url: str) -> None:
    with visit(browser, url, 1280) as seen:
        page = seen.page
        page.wait_for_selector("#adapters fieldset")
        left, right = _draw(seen, "a red robot")
        slide = "(input, value) => { input.value = value; input.dispatchEvent(new Event('input', {bubbles: true})); }"
        page.eval_on_selector("#adapters fieldset:first-child input[name=scale]", slide, "0")
        assert levels(left, right) > 1
        assert max(differences(_draw(seen, "a red robot"), [left, left])) <= 1
        page.eval_on_selector("#adapters fieldset:first-child input[name=scale]", slide, "0.8")
        page.eval_on_selector("#adapters fieldset:first-child input[name=up]", slide, "0.3")
        page.eval_on_selector("#adapters fieldset:last-child input[name=scale]", slide, "0.5")
        again, mixed = _draw(seen, "a red robot")
        assert levels(again, left) <= 1
        assert min(levels(mixed, left), levels(mixed, right)) > 1
        assert "with round + wordy" in page.inner_text(".pane:last-of-type .hash")
        page.select_option(".pane:last-of-type select", "whole")
        page.click("form details summary")
        page.check("#alone")
        assert levels(_draw(seen, "a red robot")[0], left) <= 1
        assert page.locator("#shelf li").count() == 4
        page.fill("#prompt", "")
        page.click("#shelf li:last-child button")
        assert page.input_value("#prompt") == "a red robot"
        assert seen.said == []


def test_a_model_that_takes_no_adapters_is_asked_for_without(browser: Any, url: str) -> None:
    """As the endpoint lists a LoRA that is fused into the weights; it would refuse its own name as an adapter."""
    with visit(browser, url, 1280) as seen:
        page, bodies = seen.page, []

        def fused(route: Any) -> None:
            answer = route.fetch()
            listed = answer.json()
            next(model for model in listed["data"] if model["id"] == "round")["adapters"] = []
            route.fulfill(response=answer, json=listed)

        page.route("**/v1/models", fused)
        page.on("request", lambda request: request.method == "POST" and bodies.append(request.post_data_json))
        page.reload()
        page.wait_for_selector("#variants .ready")
        assert page.eval_on_selector_all("#panes select", "all => all.map(e => e.value)") == ["base", "round"]
        assert page.is_hidden("#mix")
        assert len(_draw(seen, "a red robot")) == 2
        assert [(body["model"], body.get("adapters")) for body in bodies] == [("base", None), ("round", None)]
        page.select_option(".pane:last-of-type select", "wordy")
        assert page.is_visible("#mix")
        assert seen.said == []


def test_what_goes_wrong_is_said(browser: Any, url: str) -> None:
    with visit(browser, url, 1280) as seen:
        page = seen.page
        page.wait_for_selector("#variants .ready")
        page.click("form details summary")
        page.fill("#size", "63x64")
        page.fill("#prompt", "a dog")
        page.click("#draw")
        page.wait_for_selector("#said.bad")
        assert "the nearest is 64" in page.inner_text("#said")
        assert "not drawn" in page.inner_text(".pane:first-of-type .time")


def test_the_page_may_run_only_its_own_code(url: str) -> None:
    for path, kind in (("/", "text/html"), ("/ui/page.js", "text/javascript"), ("/ui/style.css", "text/css")):
        answer = requests.get(url + path, timeout=30)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "//" not in answer.text.replace("http-equiv", "").split("<body>")[0] or kind != "text/html"
