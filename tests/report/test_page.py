"""The report's files: whole, self-contained, safe against what stands in names, small, and the same every time."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from sdxl_ray.io.records import Recorder
from sdxl_ray.report.build import write_report
from sdxl_ray.report.images import BUDGET_BYTES, inline_all
from sdxl_ray.report.sections import SECTIONS
from tests.report.synthetic import change, rescore

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a page refers to, and whether its tags are closed."""

    VOID = {"meta", "link", "img", "path", "use", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.ids += [str(value) for name, value in attrs if name == "id"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_well_formed_and_refers_to_nothing_outside(written: Path) -> None:
    text = (written / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert {link.partition(":")[0] for link in page.links if not link.startswith("#")} == {"data"}
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert "script" not in page.tags
    assert "http://" not in text and "https://" not in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert len(text) < 8_000_000


def test_every_section_is_in_page_markdown_and_json(written: Path) -> None:
    page, md = (written / "report.html").read_text(), (written / "report.md").read_text()
    plain = json.loads((written / "report.json").read_text())
    assert len(plain["sections"]) == len(SECTIONS)
    for section in plain["sections"][1:]:
        assert f'id="{section["id"]}"' in page and f"## {section['title']}" in md


def test_names_from_files_are_text_and_nothing_else(home: Path) -> None:
    nasty = '<script>alert("x")</script> & $a_b$ | `c`'
    change(home, name=nasty, experiment=nasty)
    card = json.loads((home / "comparison.json").read_text())
    card["arms"] = {f"lora {nasty}": card["arms"]["lora"]}
    (home / "comparison.json").write_text(json.dumps(card))
    for metric in ("dino_i", "clip_t"):
        rescore(home, f"lora {nasty}", metric, 0.7)
    written = write_report(home)
    text = written.html.read_text()
    assert "<script" not in text and "&lt;script&gt;" in text
    assert Page(text).open == []
    assert "<script" not in written.markdown.read_text()


def test_images_that_are_gone_broken_or_outside_leave_a_hole(home: Path) -> None:
    (home / "pictures" / "lora-0-0.png").unlink()
    (home / "pictures" / "lora-0-1.png").write_bytes(b"not an image")
    Image.new("RGB", (8, 8)).save(home.parent / "secret.png")
    row = {"step": 150, "model": "lora", "subject": "robot", "prompt": "a photo of a robot on the beach", "seed": 0,
           "purpose": "subject", "split": "final"}  # fmt: skip
    with Recorder(home / "records") as recorder:
        recorder.write("pictures", {**row, "path": "../secret.png"})
    text = write_report(home).html.read_text()
    assert text.count('class="gone"') == 3
    assert "secret" not in text


def test_large_images_shrink_to_the_budget(tmp_path: Path) -> None:
    paths = []
    for number in range(40):
        paths.append(tmp_path / f"{number}.png")
        Image.effect_noise((700, 500), 80 + number).convert("RGB").save(paths[-1])
    made = inline_all([*paths, *paths])
    assert sum(2 * len(image.uri) * 3 / 4 for image in made.values()) <= BUDGET_BYTES * 1.01
    assert all(abs(image.width / image.height - 1.4) < 0.02 for image in made.values())


def test_a_report_is_the_same_every_time(home: Path) -> None:
    first = [path.read_bytes() for path in (write_report(home).html, home / "report.md", home / "report.json")]
    assert [path.read_bytes() for path in (write_report(home).html, home / "report.md", home / "report.json")] == first


def test_a_report_loads_no_framework(home: Path) -> None:
    script = (
        "import sys; from sdxl_ray.report.build import write_report; write_report(sys.argv[1]);"
        "print(sorted({'torch', 'ray', 'diffusers', 'transformers', 'deepspeed'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(home)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
