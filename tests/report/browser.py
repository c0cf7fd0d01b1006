"""A real browser, where there is one: Chromium from the system or as Playwright installed it, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser; skips the test, with the reason, where none can be started."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with api.sync_playwright() as playwright:
        path = next((found for name in NAMES if (found := shutil.which(name))), None)
        path = path or (p if Path(p := playwright.chromium.executable_path).is_file() else None)
        if path is None:
            pytest.skip("no browser: install chromium, or run `playwright install chromium`")
        # The pages are our own; a container's root has no sandbox to give.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """An open page, and what it said and asked for while it opened."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@contextmanager
def visit(browser: Any, page: Path | str, width: int, scheme: str = "light") -> Iterator[Visit]:
    """Open a file or an address at a width of so many pixels."""
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    opened = Visit(context.new_page())
    opened.page.on("console", lambda message: opened.said.append(message.text))
    opened.page.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.page.on("request", lambda request: opened.asked.append(request.url))
    try:
        opened.page.goto(page if isinstance(page, str) else page.as_uri(), wait_until="load", timeout=120_000)
        yield opened
    finally:
        context.close()
