"""Rows as an aligned table, for a terminal or for Markdown.

table = Table([Column("arm", "arm"), Column("bytes", "file", bytes_text)], rows)
print(table.text())
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box, table
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.text import Text

#: Columns of the page that text is laid out on: more than any table has, so that no terminal's width shows in a file.
_PAGE = 1_000_000


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
    """Columns of rows. A missing or None value is written as `-`; a key that no row has is an error (ValueError).

    rich can print it, cut to a terminal's width.
    """

    def __init__(self, columns: Sequence[Column], rows: Iterable[Mapping[str, Any]]) -> None:
        taken = list(rows)
        unknown = [column.key for column in columns if taken and not any(column.key in row for row in taken)]
        if unknown:
            raise ValueError(f"no row has {', '.join(unknown)}")
        self._titles = [column.title for column in columns]
        self._cells = [[_cell(column, row) for column in columns] for row in taken]
        self._aligns = [column.align or _lean(row.get(column.key) for row in taken) for column in columns]

    def __rich__(self) -> table.Table:
        made = table.Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
        return self._filled(made, [_Rule(1)] * len(self._aligns), str)

    def text(self) -> str:
        """Lines of aligned columns under their titles, of the same width everywhere."""
        return "\n".join(_laid_out(self.__rich__()))

    def markdown(self) -> str:
        """A pipe table, aligned in its source too."""
        made = table.Table(box=box.MARKDOWN, show_header=False)
        rules = [_Rule(3, ":" if align == "right" else "") for align in self._aligns]
        lines = _laid_out(self._filled(made, rules, lambda cell: cell.replace("|", "\\|")))
        return "\n".join(lines[1:-1])  # the box has an empty line above and below

    def _filled(self, made: table.Table, rules: Sequence[_Rule], write: Callable[[str], str]) -> table.Table:
        for align in self._aligns:
            made.add_column(justify=align, no_wrap=True)
        made.add_row(*(Text(write(title)) for title in self._titles))
        made.add_row(*rules)
        for line in self._cells:
            made.add_row(*(Text(write(cell)) for cell in line))
        return made


@dataclass(frozen=True)
class _Rule:
    """The line under a title: as wide as its column, at least `least` characters, the last of them `end`."""

    least: int
    end: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield Text("-" * (options.max_width - len(self.end)) + self.end)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self.least, self.least)


def _laid_out(made: table.Table) -> list[str]:
    page = io.StringIO()
    Console(file=page, width=_PAGE, color_system=None, force_terminal=False, force_jupyter=False).print(made)
    return [line.rstrip() for line in page.getvalue().removesuffix("\n").split("\n")]


def _cell(column: Column, row: Mapping[str, Any]) -> str:
    value = row.get(column.key)
    return "-" if value is None else column.write(value)


def _lean(values: Iterable[Any]) -> Literal["left", "right"]:
    return "left" if any(isinstance(value, str | bool) for value in values) else "right"
