"""Parquet files of images, and the bytes behind any source: one image at a time, in bounded memory."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_ray.data.image_io import BadImage, file_bytes
from sdxl_ray.errors import UserError

#: Arrow reads whole pages, and most writers put up to 1,024 rows, often a whole row group, into one.
MAX_GROUP_BYTES = 2 * 2**30
_ROWS_AT_ONCE = 8


def open_parquet(file: Path) -> Any:
    """The open file. Raises UserError: damaged, no column `image` of bytes, or a row group beyond memory."""
    try:
        # Buffered, or Arrow would take a whole column chunk (a thousand images, perhaps) into memory at once.
        table = pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
        schema = table.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file.name} is not readable Parquet ({reason}): copy or write it again") from None
    kind = schema.field("image").type if "image" in schema.names else None
    if kind is not None and pa.types.is_struct(kind):
        kind = next((child.type for child in kind.fields if child.name == "bytes"), None)
    if kind is None or not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(
            f"{file.name} has no column image of bytes or struct{{bytes, path}}: it has {', '.join(schema.names)}"
        )
    for group in range(table.metadata.num_row_groups):
        chunks = table.metadata.row_group(group)
        columns = (chunks.column(number) for number in range(chunks.num_columns))
        image_bytes = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == "image")
        if image_bytes > MAX_GROUP_BYTES:
            raise UserError(
                f"{file.name} has a row group of {image_bytes / 2**30:.1f} GiB, the limit is "
                f"{MAX_GROUP_BYTES / 2**30:.0f} GiB: write it with fewer rows in a group (pyarrow: row_group_size=100)"
            )
    return table


class Reader:
    """The bytes behind a source. Holds one open Parquet file and a page or two of its rows.

    Rows in order cost one pass; a row before the last one read starts its row group again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cursor: _Cursor | None = None

    def __reduce__(self) -> tuple[type[Reader], tuple[()]]:
        return Reader, ()  # a worker opens its own files

    def read(self, source: str) -> bytes:
        """Raises BadImage: gone, unreadable, too large, a link out of its folder, a row without bytes."""
        path, _, row = source.rpartition("#")
        if not (path.lower().endswith(".parquet") and row.isdecimal()):
            return _file_bytes(Path(source))
        with self._lock:
            if self._cursor is None or self._cursor.path != path:
                self._cursor = _Cursor(path)
            return self._cursor.row(int(row))


def _file_bytes(path: Path) -> bytes:
    try:
        leaves = path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve())
    except (OSError, RuntimeError):  # a loop of links
        leaves = True
    if leaves:
        raise BadImage(f"image {path.name!r} is a link out of its folder: copy the file itself")
    return file_bytes(path, path.name)


class _Cursor:
    def __init__(self, path: str) -> None:
        self.path = path
        self._table = open_parquet(Path(path))
        metadata = self._table.metadata
        self._starts = [0]
        for group in range(metadata.num_row_groups):
            self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)
        self._group, self._first = -1, 0
        self._rows: Any = ()
        self._batches: Iterator[Any] = iter(())

    def row(self, row: int) -> bytes:
        name = f"{Path(self.path).name}#{row}"
        if row >= self._starts[-1]:
            raise BadImage(f"image {name!r} does not exist: the file has {self._starts[-1]} rows; was it replaced?")
        try:
            value = self._value(row)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise BadImage(f"image {name!r} cannot be read ({error}): copy the Parquet file again") from None
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise BadImage(f"image {name!r} has no bytes (a path alone is not enough): write the bytes into the column")
        return data

    def _value(self, row: int) -> Any:
        group = bisect_right(self._starts, row) - 1
        if group != self._group or row < self._first:
            self._group, self._first, self._rows = group, self._starts[group], ()
            self._batches = self._table.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=["image"])
        while row >= self._first + len(self._rows):
            self._first += len(self._rows)
            self._rows = next(self._batches).column(0)
        return self._rows[row - self._first].as_py()
