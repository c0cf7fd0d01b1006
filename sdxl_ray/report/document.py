"""A report as a document: sections of blocks, without a word of HTML or Markdown.

A section file under `sections/` turns facts into one `ReportSection`; `page` and `markdown` write the blocks they
find. So a new section is one more file, and it appears in the page, in the Markdown and in the JSON at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from sdxl_ray.report.metrics import Absent, Gain, Score

Tone = Literal["", "good", "bad", "muted", "strong"]

#: Draws a figure as inline markup, once a page wants it: Markdown and JSON do without.
Plot = Callable[[], str]


@dataclass(frozen=True)
class Cell:
    """Text in a table. note: why a number is absent, or what is special about it; shown under the table.

    small: written smaller after it: an interval, a remark.
    """

    text: str
    note: str = ""
    tone: Tone = ""
    number: bool = False
    small: str = ""


@dataclass(frozen=True)
class DataTable:
    """Rows under titles; the first cell of a row is its heading. caption: one sentence.

    prose: cells are sentences, so a phone shows a row as a card. folded: long, and shown when it is asked for.
    """

    kind: ClassVar[str] = "table"
    caption: str
    titles: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    prose: bool = False
    folded: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """Every note once, in the order in which a reader meets it."""
        return tuple(dict.fromkeys(cell.note for row in self.rows for cell in row if cell.note))


@dataclass(frozen=True)
class Paragraph:
    kind: ClassVar[str] = "paragraph"
    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Panel:
    """One plot. alt: what it shows in one sentence; numbers: the same as a table."""

    kind: ClassVar[str] = "panel"
    title: str
    plot: Plot = field(repr=False)
    alt: str
    numbers: DataTable


@dataclass(frozen=True)
class Panels:
    """Plots side by side where there is room."""

    kind: ClassVar[str] = "panels"
    caption: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Tile:
    """One image, or the reason why it is not there. relative: where it lies in the comparison's folder."""

    alt: str
    path: Path | None
    relative: str = ""
    label: str = ""


@dataclass(frozen=True)
class TileRows:
    """Images of one prompt: a row a seed, a tile a column."""

    title: str
    rows: tuple[tuple[str, tuple[Tile, ...]], ...]


@dataclass(frozen=True)
class Gallery:
    """Images in columns (models) and groups of rows (prompts), with photos beside them."""

    kind: ClassVar[str] = "gallery"
    caption: str
    columns: tuple[str, ...]
    groups: tuple[TileRows, ...]
    photos: tuple[Tile, ...]


@dataclass(frozen=True)
class Stat:
    """One figure of the first screen. detail: what it is compared with."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class AnswerBlock:
    """The first screen: what came out, in words, in figures, in images."""

    kind: ClassVar[str] = "answer"
    headline: str
    sentences: tuple[str, ...]
    stats: tuple[Stat, ...]
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class BulletList:
    """Terms and what they are."""

    kind: ClassVar[str] = "listing"
    caption: str
    items: tuple[tuple[str, str], ...]


ReportBlock = Paragraph | DataTable | Panels | Gallery | AnswerBlock | BulletList


@dataclass(frozen=True)
class ReportSection:
    """id: its anchor. lead: one sentence under the heading."""

    id: str
    title: str
    lead: str
    blocks: tuple[ReportBlock, ...]


@dataclass(frozen=True)
class Document:
    title: str
    subtitle: str
    sections: tuple[ReportSection, ...]


def absent(reason: str) -> Cell:
    """The cell of what was not measured."""
    return Cell("not measured", note=f"not measured: {reason}", tone="muted")


def cell(value: Any, write: Any = str, *, tone: Tone = "") -> Cell:
    """A value as a cell, an Absent as `not measured`."""
    if isinstance(value, Absent):
        return absent(value.reason)
    return Cell(write(value), tone=tone, number=not isinstance(value, str))


def score_cell(score: Score | Absent, digits: int = 3, tone: Tone = "") -> Cell:
    """`0.612 [0.580, 0.644]`."""
    if isinstance(score, Absent):
        return absent(score.reason)
    return Cell(_written(score.value, digits), tone=tone, number=True, small=interval_text(score, digits))


def interval_text(score: Score | Gain, digits: int = 3, *, signed: bool = False) -> str:
    """`[0.580, 0.644]`, or nothing where no interval is recorded."""
    if score.low is None or score.high is None:
        return ""
    return f"[{_written(score.low, digits, signed)}, {_written(score.high, digits, signed)}]"


def score_text(score: Score | Gain, digits: int = 3, *, signed: bool = False) -> str:
    """Value and interval; `signed` writes the plus of a difference too."""
    return f"{_written(score.value, digits, signed)} {interval_text(score, digits, signed=signed)}".rstrip()


def _written(value: float, digits: int, signed: bool = False) -> str:
    return f"{round(value, digits) + 0.0:{'+' if signed else ''}.{digits}f}"  # + 0.0: no minus before a zero


def joined(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""
