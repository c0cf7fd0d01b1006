"""Where images and their captions come from: the files of a folder, or the rows of Parquet files.

`entries` says what there is without reading an image; `Reader` then gives the bytes of one at a time, in bounded
memory. Together they are what a local scan and a Ray Data pipeline both map over. What lies there and is not read is
listed by `core.unused`.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from sdxl_ray.config.file_names import did_you_mean, existing, same_name
from sdxl_ray.config.schema import Data
from sdxl_ray.config.text_files import read_text
from sdxl_ray.data.folder_listing import Listing, images_below, list_folder
from sdxl_ray.data.image_io import MAX_FILE_BYTES
from sdxl_ray.data.parquet_images import Reader, open_parquet
from sdxl_ray.errors import UserError, nearest

__all__ = ["Captions", "ImageEntry", "Reader", "entries"]

Captions = Literal["auto", "metadata", "sidecar", "prompt"]

METADATA = "metadata.jsonl"
HELD_OUT = "held_out"
#: Columns of Parquet and keys of metadata.jsonl that hold a caption; the first that is there is read.
CAPTION_COLUMNS = ("text", "caption", "prompt")
#: Caption files beside an image: kohya's trainers write `.caption` by default.
SIDECARS = (".txt", ".caption")


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image before it is looked at. `source` is a path, or `file.parquet#row`."""

    source: str
    caption: str


def require_sources(data: Data) -> None:
    """Raise UserError when a folder or file of images that a recipe names is not there. No image is looked for."""
    named = {"data.images": data.images, "data.validation": data.validation}
    if data.prior is not None:
        named["data.prior.images"] = data.prior.images
    for setting, where in named.items():
        if where is not None:
            require_source(where, setting)


def require_source(where: str, setting: str) -> Path:
    """The path of images. Raises UserError where there is neither a folder nor a Parquet file."""
    path = source_path(where)
    if not path.is_dir() and not is_parquet(path):
        what = "is a file, not a folder or .parquet" if path.is_file() else "does not exist"
        near = did_you_mean(path)
        raise UserError(f"{setting} {where!r} {what}: give a folder of images, a .parquet file or subject:NAME{near}")
    return path


def entries(
    where: str,
    captions: Captions,
    prompt: str | None,
    setting: str,
    *,
    recursive: bool = False,
    column: str | None = None,
) -> list[ImageEntry]:
    """Every image of a folder, a Parquet file or folder, or `subject:NAME`, with its caption; folders by file name.

    captions, recursive, column: as in `sections.Data`. prompt: the caption of images without one. setting: the name of
    `where`. Raises UserError: nothing there, broken metadata (file and line), missing or duplicate captions.
    """
    path = require_source(where, setting)
    if is_parquet(path):
        return _parquet([path], captions, prompt, column)
    listing = list_folder(path, setting, recursive=recursive and not is_subject(where))
    if listing.images and listing.tables:
        raise UserError(
            f"{setting} {where!r} holds images ({listing.name(listing.images[0])}) and Parquet files "
            f"({listing.name(listing.tables[0])}): keep one kind in a folder"
        )
    if listing.tables:
        return _parquet(list(listing.tables), captions, prompt, column)
    if not listing.images:
        raise UserError(f"{setting} {where!r} holds no images: {_hint(listing, setting)}")
    return _folder(listing, captions, prompt, column)


def is_subject(where: str) -> bool:
    """Whether a source is a subject that ships with the package."""
    return where.startswith("subject:")


def source_path(where: str) -> Path:
    """The file or folder of a source. Raises UserError for a subject that is not shipped."""
    return _subject(where.removeprefix("subject:")) if is_subject(where) else existing(Path(where))


def is_parquet(path: Path) -> bool:
    """Whether a source is one Parquet file."""
    return path.is_file() and path.suffix.lower() == ".parquet"


def _hint(listing: Listing, setting: str) -> str:
    below = images_below(listing.folder)
    if not below:
        return "put PNG, JPEG, WEBP, BMP or TIFF files right into it"
    fix = "data.recursive=true reads them" if setting.startswith("data.") else "give one of those folders"
    return f"{len(below)} are in folders below it ({listing.name(below[0])}): {fix}"


def _subject(name: str) -> Path:
    """The folder of a shipped subject's training images, or of those held out: `robot`, `robot/held_out`."""
    name, _, part = name.partition("/")
    folder = Path(str(resources.files("sdxl_ray") / "tiny" / "subjects"))
    known = sorted(child.name for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []
    if name not in known:
        raise UserError(f"no subject named {name!r} is shipped: {nearest(name, known)}, or give a folder of images")
    if part not in ("", HELD_OUT):
        raise UserError(f"subject {name!r} has no {part!r}: write subject:{name} or subject:{name}/{HELD_OUT}")
    return folder / name / part


def _folder(listing: Listing, captions: Captions, prompt: str | None, column: str | None) -> list[ImageEntry]:
    kind = caption_kind(listing, captions)
    of: dict[Path, str] = {}
    if kind == "metadata":
        of = _metadata(listing, column)
    elif kind == "sidecar":
        of = {image: text for image, file in sidecars(listing).items() if (text := _text(file).strip())}
    else:
        of = dict.fromkeys(listing.images, _needed(prompt))
    missing = [listing.name(image) for image in listing.images if image not in of]
    if missing:
        more = f" ({len(missing) - 1} more: {_listed(missing[1:])})" if missing[1:] else ""
        fix = f"add a row to {METADATA}" if kind == "metadata" else "write it into a .txt file of the same name"
        raise UserError(f"image {missing[0]!r} has no caption{more}: {fix}, or set data.captions=prompt")
    return [ImageEntry(str(image), of[image]) for image in listing.images]


def caption_kind(listing: Listing, captions: Captions) -> Literal["metadata", "sidecar", "prompt"]:
    """Where the captions of a folder come from: as asked for, else by what lies there."""
    if captions != "auto":
        return captions
    return "metadata" if metadata_files(listing) else "sidecar" if sidecars(listing) else "prompt"


def metadata_files(listing: Listing) -> list[Path]:
    """Every metadata.jsonl of a listing: each describes the images of its own folder and below."""
    return [file for file in listing.others if file.name == METADATA]


def sidecars(listing: Listing) -> dict[Path, Path]:
    """The caption file of each image that has one: of the same name, `.txt` before `.caption`, in any case."""
    files = {(stem(file), file.suffix.lower()): file for file in listing.others}
    of = {}
    for image in listing.images:
        found = next((files[key] for suffix in SIDECARS if (key := (stem(image), suffix)) in files), None)
        if found is not None:
            of[image] = found
    return of


def stem(file: Path) -> tuple[Path, str]:
    """What an image and its caption file have in common: the folder, and the name without its suffix."""
    # Composed: macOS writes accents as characters of their own, other systems do not.
    return file.parent, unicodedata.normalize("NFC", file.stem)


def _needed(prompt: str | None) -> str:
    if prompt is None:
        raise UserError(
            "the images have no captions and there is no prompt: set data.subject (for example 'sks dog') or "
            f"data.prompt, or write {METADATA} or .txt files"
        )
    return prompt


def _metadata(listing: Listing, column: str | None) -> dict[Path, str]:
    of: dict[Path, str] = {}
    for file in metadata_files(listing) or [listing.folder / METADATA]:
        below = {image.relative_to(file.parent).as_posix(): image for image in _below(listing, file.parent)}
        for where, row in metadata_rows(file, listing.name(file)):
            name = row.get("file_name")
            if not isinstance(name, str):
                raise UserError(f'{where} has no file_name: write {{"file_name": "00.jpg", "text": "a photo of …"}}')
            image = below.get(same_name(name, below) or "")
            if image is None:
                nested = (file.parent / name).is_file() and "/" in name
                fix = "set data.recursive=true" if nested else nearest(name, below)
                raise UserError(f"{where} names {name!r}, no image of this folder: {fix}")
            if image in of:
                raise UserError(f"{where} gives {name!r} a second caption: keep one row for each image")
            of[image] = _caption(row.get(caption_key(row, column) or ""), f"{where} ({name!r})", column)
    return of


def _below(listing: Listing, folder: Path) -> Iterator[Path]:
    return (image for image in listing.images if image.is_relative_to(folder))


def metadata_rows(file: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of each line of a metadata.jsonl that `name` calls. Raises UserError for one that is no object."""
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f'{where} is not JSON: write one object a line, {{"file_name": …, "text": …}}') from None
        yield where, row if isinstance(row, dict) else {}


def caption_key(columns: Any, column: str | None) -> str | None:
    """Which of some keys or columns is read as the caption: the one asked for, else the first usual one."""
    return next((name for name in ((column,) if column else CAPTION_COLUMNS) if name in columns), None)


def _text(file: Path) -> str:
    if file.is_file() and file.stat().st_size > MAX_FILE_BYTES:
        raise UserError(f"{file.name} is larger than 1 GiB, the limit: use Parquet for a set of that size")
    return read_text(file, file.name)


def _caption(value: Any, where: str, column: str | None) -> str:
    if not isinstance(value, str) or not value.strip():
        key = f" in {column!r}" if column else ""
        raise UserError(f"{where} has no caption{key}: give it a text that is not empty, or set data.captions=prompt")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where} has half a character (a lone surrogate) in its caption: remove it") from None
    return value.strip()


def _parquet(files: list[Path], captions: Captions, prompt: str | None, column: str | None) -> list[ImageEntry]:
    if captions == "sidecar":
        raise UserError("data.captions sidecar is for folders of images: Parquet captions are a column, use auto")
    found: list[ImageEntry] = []
    for file in files:
        table = open_parquet(file)
        names = table.schema_arrow.names
        key = caption_key(names, column)
        if key is None and (captions == "metadata" or column is not None):
            wanted = column or ", ".join(CAPTION_COLUMNS)
            raise UserError(f"{file.name} has no column {wanted}, only {', '.join(names)}: set data.caption_column")
        if key is None and prompt is None and captions != "prompt":
            raise UserError(
                f"{file.name} has no column {', '.join(CAPTION_COLUMNS)}, only {', '.join(names)}, and there is no "
                f"prompt: set data.caption_column={_likely(names)}, or data.subject (for example 'sks dog')"
            )
        if captions == "prompt" or key is None:
            texts: list[Any] = [_needed(prompt)] * table.metadata.num_rows
        else:
            try:
                texts = table.read(columns=[key]).column(0).to_pylist()
            except (pa.ArrowException, OSError, ValueError) as error:
                raise UserError(f"{file.name} is damaged in column {key} ({error}): copy it again") from None
        rows = enumerate(texts)
        found += [ImageEntry(f"{file}#{row}", _caption(text, f"{file.name} row {row}", column)) for row, text in rows]
    if not found:
        raise UserError(f"{_listed([file.name for file in files])} has no rows: give Parquet with an image in each row")
    return found


def _likely(columns: list[str]) -> str:
    """The column that is most likely meant: the first that is not the image."""
    return next((name for name in columns if name != "image"), "NAME")


def _listed(names: list[str], limit: int = 20) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
