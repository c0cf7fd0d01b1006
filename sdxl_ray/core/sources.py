"""Where pictures and their captions come from: the files of a folder, or the rows of Parquet files.

`entries` says what there is without reading a picture; `Reader` then gives the bytes of one at a time, in bounded
memory. Together they are what a local scan and a Ray Data pipeline both map over.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_ray.core.pictures import MAX_FILE_BYTES, BadPicture, file_bytes
from sdxl_ray.errors import UserError, nearest
from sdxl_ray.file_names import did_you_mean, existing, same_name
from sdxl_ray.text_files import read_text

Captions = Literal["auto", "metadata", "sidecar", "prompt"]

METADATA = "metadata.jsonl"
HELD_OUT = "held_out"
#: Names that mean a picture. Those that cannot be read are here too: to leave a user's photos out silently is worse.
_READABLE = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff"}
_SUFFIXES = _READABLE | {".gif", ".heic", ".heif", ".avif", ".psd", ".jp2", ".jxl", ".dng", ".cr2", ".nef", ".arw"}
#: Arrow reads whole pages, and most writers put up to 1,024 rows, often a whole row group, into one.
MAX_GROUP_BYTES = 2 * 2**30
_ROWS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture before it is looked at. `source` is a path, or `file.parquet#row`."""

    source: str
    caption: str


def entries(where: str, captions: Captions, prompt: str | None, setting: str) -> list[Entry]:
    """Every picture of a folder, a Parquet file or folder, or `subject:NAME`, with its caption; folders by file name.

    `captions` is `sections.Data.captions`, `prompt` the caption of those without one, `setting` the name of `where`.
    Raises UserError: nothing there, broken metadata (file and line), missing or duplicate captions.
    """
    path = _subject(where.removeprefix("subject:")) if where.startswith("subject:") else existing(Path(where))
    if path.is_file() and path.suffix == ".parquet":
        return _parquet([path], captions, prompt)
    if not path.is_dir():
        what = "is a file, not a folder or .parquet" if path.is_file() else "does not exist"
        near = did_you_mean(path)
        raise UserError(f"{setting} {where!r} {what}: give a folder of pictures, a .parquet file or subject:NAME{near}")
    try:
        files = [file for file in sorted(path.iterdir()) if not file.name.startswith(".") and not file.is_dir()]
    except OSError as error:
        raise UserError(f"{setting} {where!r} cannot be read: {error.strerror}; check its rights") from None
    pictures = [file for file in files if file.suffix.lower() in _SUFFIXES]
    tables = [file for file in files if file.suffix == ".parquet"]
    if pictures and tables:
        raise UserError(
            f"{setting} {where!r} holds pictures ({pictures[0].name}) and Parquet files ({tables[0].name}): "
            "keep one kind in a folder"
        )
    if tables:
        return _parquet(tables, captions, prompt)
    if not pictures:
        raise UserError(
            f"{setting} {where!r} holds no pictures: put PNG, JPEG, WEBP, BMP or TIFF files right into it "
            "(folders inside it are not read)"
        )
    return _folder(path, pictures, captions, prompt)


def _subject(name: str) -> Path:
    """The folder of a shipped subject's training pictures, or of those held out: `robot`, `robot/held_out`."""
    name, _, part = name.partition("/")
    folder = Path(str(resources.files("sdxl_ray") / "tiny" / "subjects"))
    known = sorted(child.name for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []
    if name not in known:
        raise UserError(f"no subject named {name!r} is shipped: {nearest(name, known)}, or give a folder of pictures")
    if part not in ("", HELD_OUT):
        raise UserError(f"subject {name!r} has no {part!r}: write subject:{name} or subject:{name}/{HELD_OUT}")
    return folder / name / part


def _folder(folder: Path, files: list[Path], captions: Captions, prompt: str | None) -> list[Entry]:
    if captions == "auto":
        sidecars = any(file.with_suffix(".txt").is_file() for file in files)
        captions = "metadata" if (folder / METADATA).is_file() else "sidecar" if sidecars else "prompt"
    if captions == "metadata":
        of = _metadata(folder, {file.name for file in files})
    elif captions == "sidecar":
        of = {file.name: text for file in files if (text := _sidecar(file.with_suffix(".txt")))}
    else:
        of = dict.fromkeys((file.name for file in files), _needed(prompt))
    missing = [file.name for file in files if file.name not in of]
    if missing:
        more = f" ({len(missing) - 1} more: {_listed(missing[1:])})" if missing[1:] else ""
        fix = f"add a row to {METADATA}" if captions == "metadata" else "write it into a .txt file of the same name"
        raise UserError(f"picture {missing[0]!r} has no caption{more}: {fix}, or set data.captions=prompt")
    return [Entry(str(file), of[file.name]) for file in files]


def _needed(prompt: str | None) -> str:
    if prompt is None:
        raise UserError(
            "the pictures have no captions and there is no prompt: set data.subject (for example 'sks dog') or "
            f"data.prompt, or write {METADATA} or .txt files"
        )
    return prompt


def _metadata(folder: Path, names: set[str]) -> dict[str, str]:
    of: dict[str, str] = {}
    for number, line in enumerate(_text(folder / METADATA).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{METADATA} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f'{where} is not JSON: write one object a line, {{"file_name": …, "text": …}}') from None
        name = row.get("file_name") if isinstance(row, dict) else None
        if not isinstance(name, str):
            raise UserError(f'{where} has no file_name: write {{"file_name": "00.jpg", "text": "a photo of …"}}')
        given, name = name, same_name(name, names)
        if name is None:
            raise UserError(f"{where} names {given!r}, no picture of this folder: {nearest(given, names)}")
        if name in of:
            raise UserError(f"{where} gives {name!r} a second caption: keep one row for each picture")
        of[name] = _caption(row.get("text", row.get("caption")), f"{where} ({name!r})")
    return of


def _sidecar(file: Path) -> str | None:
    return _text(file).strip() or None if file.is_file() else None


def _text(file: Path) -> str:
    if file.is_file() and file.stat().st_size > MAX_FILE_BYTES:
        raise UserError(f"{file.name} is larger than 1 GiB, the limit: use Parquet for a set of that size")
    return read_text(file, file.name)


def _caption(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where} has no caption: give it a text that is not empty, or set data.captions=prompt")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where} has half a character (a lone surrogate) in its caption: remove it") from None
    return value.strip()


def _parquet(files: list[Path], captions: Captions, prompt: str | None) -> list[Entry]:
    if captions == "sidecar":
        raise UserError("data.captions sidecar is for folders of pictures: Parquet captions are a column, use auto")
    found: list[Entry] = []
    for file in files:
        table = _open_parquet(file)
        column = next((name for name in ("text", "caption") if name in table.schema_arrow.names), None)
        if captions == "metadata" and column is None:
            raise UserError(f"{file.name} has no column text or caption, only {', '.join(table.schema_arrow.names)}")
        if captions == "prompt" or column is None:
            texts: list[Any] = [_needed(prompt)] * table.metadata.num_rows
        else:
            try:
                texts = table.read(columns=[column]).column(0).to_pylist()
            except (pa.ArrowException, OSError, ValueError) as error:
                raise UserError(f"{file.name} is damaged in column {column} ({error}): copy it again") from None
        found += [Entry(f"{file}#{row}", _caption(text, f"{file.name} row {row}")) for row, text in enumerate(texts)]
    if not found:
        raise UserError(f"{_listed([file.name for file in files])} has no rows: give Parquet with an image in each row")
    return found


def _open_parquet(file: Path) -> Any:
    try:
        # Buffered, or Arrow would take a whole column chunk (a thousand pictures, perhaps) into memory at once.
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


def _listed(names: list[str], limit: int = 20) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


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
        """Raises BadPicture: gone, unreadable, too large, a link out of its folder, a row without bytes."""
        path, _, row = source.rpartition("#")
        if not (path.endswith(".parquet") and row.isdecimal()):
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
        raise BadPicture(f"picture {path.name!r} is a link out of its folder: copy the file itself")
    return file_bytes(path, path.name)


class _Cursor:
    def __init__(self, path: str) -> None:
        self.path = path
        self._table = _open_parquet(Path(path))
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
            raise BadPicture(f"picture {name!r} does not exist: the file has {self._starts[-1]} rows; was it replaced?")
        try:
            value = self._value(row)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise BadPicture(f"picture {name!r} cannot be read ({error}): copy the Parquet file again") from None
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise BadPicture(
                f"picture {name!r} has no bytes (a path alone is not enough): write the bytes into the column"
            )
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
