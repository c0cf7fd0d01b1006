"""Rows as an aligned table, for a terminal or for Markdown.

table = Table([Column("arm", "arm"), Column("bytes", "file", bytes_text)], rows)
print(table.text())
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Column:
    """One column: `key` of the row, heading, how a value is written, and the side it leans on.

    align: default right for everything but text.
    """

    key: str
    title: str
    write: Callable[[Any], str] = str
    align: Literal["left", "right"] | None = None


class Table:
    """Columns of rows. A missing or None value is written as `-`; a key that no row has is an error (ValueError)."""

    def __init__(self, columns: Sequence[Column], rows: Iterable[Mapping[str, Any]]) -> None:
        taken = list(rows)
        unknown = [column.key for column in columns if taken and not any(column.key in row for row in taken)]
        if unknown:
            raise ValueError(f"no row has {', '.join(unknown)}")
        self.titles = [column.title for column in columns]
        self.cells = [[_cell(column, row) for column in columns] for row in taken]
        self.aligns = [column.align or _lean(row.get(column.key) for row in taken) for column in columns]
        self.widths = [
            max(len(lines[place]) for lines in [self.titles, *self.cells]) for place in range(len(self.titles))
        ]

    def text(self) -> str:
        """Lines of aligned columns under their titles."""
        lines = [self.titles, ["-" * width for width in self.widths], *self.cells]
        return "\n".join("  ".join(self._padded(line)).rstrip() for line in lines)

    def markdown(self) -> str:
        """A pipe table, aligned in its source too."""
        rule = [
            "-" * (width - 1) + ":" if side == "right" else "-" * width
            for width, side in zip(self._markdown_widths(), self.aligns, strict=True)
        ]
        body = [[cell.replace("|", "\\|") for cell in line] for line in [self.titles, *self.cells]]
        padded = [_pad(line, self._markdown_widths(), self.aligns) for line in body]
        return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])

    def _padded(self, line: list[str]) -> list[str]:
        return _pad(line, self.widths, self.aligns)

    def _markdown_widths(self) -> list[int]:
        columns = zip(self.titles, *self.cells, strict=True)
        return [max(3, *(len(cell) + cell.count("|") for cell in column)) for column in columns]


def _cell(column: Column, row: Mapping[str, Any]) -> str:
    value = row.get(column.key)
    return "-" if value is None else column.write(value)


def _lean(values: Iterable[Any]) -> Literal["left", "right"]:
    return "left" if any(isinstance(value, str | bool) for value in values) else "right"


def _pad(line: list[str], widths: list[int], aligns: Sequence[str]) -> list[str]:
    return [
        cell.rjust(width) if side == "right" else cell.ljust(width)
        for cell, width, side in zip(line, widths, aligns, strict=True)
    ]
