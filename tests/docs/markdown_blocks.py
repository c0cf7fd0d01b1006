"""Code blocks of the project's Markdown pages: fenced and indented ones, with the page and line they start at."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "sdxl_ray" / "docs").glob("*.md"), *(ROOT / ".github").glob("*.md")])
_PROMPT = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(sdxl-ray(?: .*)?)$")


@dataclass(frozen=True)
class Block:
    """One code block. where: page:line; language: the word after the fence, empty for an indented block."""

    where: str
    language: str
    text: str


def blocks() -> list[Block]:
    """Every code block of every page."""
    return [block for page in PAGES for block in _of(page)]


def commands() -> list[tuple[str, list[str]]]:
    """(where, words after `sdxl-ray`) of every command line in a block that is no Python or YAML."""
    found = []
    for block in blocks():
        if block.language in ("python", "yaml", "json"):
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            if match := _PROMPT.match(line.strip()):
                words = shlex.split(match[1], comments=True)[1:]
                shell = next((place for place, word in enumerate(words) if word in (">", "|", "&&", "&")), len(words))
                found.append((block.where, words[:shell]))
    return found


def _of(page: Path) -> Iterator[Block]:
    fence: str | None = None
    lines: list[str] = []
    start = 0
    for number, line in enumerate([*page.read_text(encoding="utf-8").splitlines(), ""], 1):
        opened = re.match(r"^```(\w*)", line)
        indented = fence is None and line.startswith("    ")
        if fence is None and (opened or indented):
            if opened:
                fence, start, lines = opened[1], number, []
            else:
                start, lines = (number, []) if not lines else (start, lines)
                lines.append(line[4:])
        elif fence is not None and opened:
            yield Block(f"{page.name}:{start}", fence, "\n".join(lines))
            fence, lines = None, []
        elif fence is not None:
            lines.append(line)
        elif lines:
            yield Block(f"{page.name}:{start}", "", "\n".join(lines))
            lines = []
