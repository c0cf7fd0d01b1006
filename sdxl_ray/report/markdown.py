"""A document as Markdown: the same tables and sentences; plots as their numbers, images as links into the folder."""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import quote

from sdxl_ray.display.table import Column, Table
from sdxl_ray.report.document import (
    AnswerBlock,
    BulletList,
    Cell,
    DataTable,
    Document,
    Gallery,
    Panels,
    Paragraph,
    ReportBlock,
    Tile,
)


def markdown(document: Document) -> str:
    """The whole document."""
    parts = [f"# {_plain(document.title)}", _plain(document.subtitle)]
    for place, section in enumerate(document.sections):
        if place:
            parts += [f"## {_plain(section.title)}", _plain(section.lead)]
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: ReportBlock) -> str:
    match block:
        case Paragraph():
            return _plain(block.text)
        case DataTable():
            return f"{_plain(block.caption)}\n\n{_table(block)}"
        case Panels():
            plots = (f"**{_plain(panel.title)}**\n\n{_table(panel.numbers)}" for panel in block.panels)
            return "\n\n".join([f"### {_plain(block.caption)}", *plots])
        case Gallery():
            return _gallery(block)
        case BulletList():
            return "\n".join([f"### {_plain(block.caption)}", "", *(f"- {k}: {_plain(v)}" for k, v in block.items)])
        case AnswerBlock():
            return _answer(block)


def _answer(block: AnswerBlock) -> str:
    parts = [f"**{_plain(block.headline)}**", *map(_plain, block.sentences)]
    if block.tiles:
        parts.append(_pipes([tile.label for tile in block.tiles], [[_image(tile) for tile in block.tiles]]))
    if block.stats:
        parts.append(_pipes(["", "value", "compared with"], [[s.label, s.value, s.detail] for s in block.stats]))
    return "\n\n".join(parts)


def _gallery(block: Gallery) -> str:
    parts = [f"### {_plain(block.caption)}"]
    if block.photos:
        parts.append("Real photos: " + " ".join(_image(tile) for tile in block.photos))
    for group in block.groups:
        rows = [[seed, *(_image(tile) for tile in row)] for seed, row in group.rows]
        parts.append(f"**{_plain(group.title)}**\n\n{_pipes(['', *block.columns], rows)}")
    return "\n\n".join(parts)


def _image(tile: Tile) -> str:
    inside = tile.path is not None and not PurePosixPath(tile.relative).is_absolute()
    return f"![{_plain(tile.alt)}]({quote(tile.relative)})" if inside else _plain(tile.label or "no image")


def _table(block: DataTable) -> str:
    notes = block.notes

    def text(cell: Cell) -> str:
        mark = f" ({notes.index(cell.note) + 1})" if cell.note else ""
        return _plain(f"{cell.text} {cell.small}") + mark

    body = _pipes(list(block.titles), [[text(cell) for cell in row] for row in block.rows])
    reported = "\n".join(f"({number}) {_plain(note)}  " for number, note in enumerate(notes, start=1))
    return f"{body}\n\n{reported.rstrip()}" if reported else body


def _pipes(titles: list[str], rows: list[list[str]]) -> str:
    columns = [Column(str(place), _plain(title)) for place, title in enumerate(titles)]
    return Table(columns, [{str(k): cell for k, cell in enumerate(row)} for row in rows]).markdown()


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is: names come from users' files, and one line must stay one line."""
    words = " ".join(text.split()).replace("<", "&lt;")
    return words.replace("*", "\\*").replace("_", "\\_").replace("[", "\\[") if words else ""
