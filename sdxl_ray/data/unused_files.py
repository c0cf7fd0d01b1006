"""What lies in a source of images and is not read: captions, images in other folders, other files. Only names are read.

`unused` gives one line a kind, with a count and an example, for `train` and `evaluate` to print once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from sdxl_ray.data.folder_listing import Listing, images_below, list_folder
from sdxl_ray.data.image_sources import (
    METADATA,
    SIDECARS,
    Captions,
    caption_key,
    caption_kind,
    is_parquet,
    is_subject,
    metadata_files,
    metadata_rows,
    sidecars,
    source_path,
    stem,
)
from sdxl_ray.data.parquet_images import open_parquet

#: class: all images have the class prompt. photos: captions are not read.
Use = Captions | Literal["class", "photos"]

#: Columns and keys whose name means a caption.
_CAPTION_LIKE = re.compile("text|caption|prompt|description|sentence|tags?$|title|label", re.IGNORECASE)
#: Files that are about a set, or made from it, and hold no captions.
_ABOUT = re.compile(
    r"(readme|licen[cs]e|copying|notice|credits|attribution|notes|dataset_info|dataset_dict|state)(\..*)?|"
    r".*\.(md|rst|npz|npy|safetensors|ya?ml|toml|ini|cfg|py|sh|log|lock)",
    re.IGNORECASE,
)
_TABLES = frozenset({".csv", ".tsv", ".json", ".jsonl", ".xlsx"})
#: `10_sks dog`: kohya's trainers read repeats and a prompt from a folder's name.
_KOHYA = re.compile(r"\d+_.+")


def unused(
    where: str,
    setting: str,
    use: Use,
    *,
    recursive: bool = False,
    column: str | None = None,
    elsewhere: frozenset[Path] = frozenset(),
) -> list[str]:
    """One line for each kind of input of a source that can be read and is not.

    elsewhere: folders (resolved) that another setting reads. A source that is not there gives none: whoever reads it
    says what is wrong.
    """
    if is_subject(where):
        return []
    path = source_path(where)
    if is_parquet(path):
        found = list(_columns([path], use, column))
    elif not path.is_dir():
        return []
    else:
        listing = list_folder(path, setting, recursive=recursive)
        found = list(_folders(listing, setting, recursive, elsewhere))
        if listing.tables:
            found += [*_columns(listing.tables, use, column), *_others(listing, use, ())]
        else:
            found += _captions(listing, use, column)
    return [f"{setting} {where!r}: {line}" for line in found]


def counted(files: Sequence[Any], singular: str, plural: str | None = None) -> str:
    """`1 image`, `3 images`."""
    return f"{len(files)} {singular if len(files) == 1 else plural or singular + 's'}"


def _folders(listing: Listing, setting: str, recursive: bool, elsewhere: frozenset[Path]) -> Iterator[str]:
    images = listing.images if recursive else images_below(listing.folder, elsewhere)
    names = [listing.name(image) for image in images]
    kohya = next((name.split("/")[0] for name in names if "/" in name and _KOHYA.fullmatch(name.split("/")[0])), None)
    if not recursive and images:
        fix = "data.recursive=true reads them" if setting.startswith("data.") else "give that folder to read them"
        yield f"{counted(images, 'image')} in folders below it not read ({names[0]}): {fix}"
    if kohya is not None and setting.startswith("data."):
        yield (
            f"the folder name {kohya!r} means nothing here, where kohya's trainers read repeats and a prompt: every "
            "image is used equally often, and data.subject or data.prompt is the prompt"
        )


def _captions(listing: Listing, use: Use, column: str | None) -> Iterator[str]:
    files = [file for file in listing.others if file.suffix.lower() in SIDECARS and not _ABOUT.fullmatch(file.name)]
    if use == "photos":
        yield from _others(listing, use, files)
        return
    kind = "class" if use == "class" else caption_kind(listing, use)
    paired, stems = set(sidecars(listing).values()), {stem(image) for image in listing.images}
    unread, twice, orphans = [], [], []
    for file in files:
        if file in paired:
            unread.append(file)
        elif stem(file) in stems:
            twice.append(file)
        else:
            orphans.append(file)
    tables = metadata_files(listing)
    why = {
        "class": "class images all have the class prompt",
        "metadata": f"{METADATA} has the captions; data.captions=sidecar reads them",
        "prompt": "data.captions=prompt gives every image the prompt",
    }
    if kind != "sidecar" and unread:
        yield f"{counted(unread, 'caption file')} not read ({listing.name(unread[0])}): {why[kind]}"
    if kind not in ("metadata", "class") and tables:
        yield f"{listing.name(tables[0])} not read: data.captions=metadata reads it"
    if kind == "class" and tables:
        yield f"{listing.name(tables[0])} not read: {why[kind]}"
    if kind == "sidecar" and twice:
        yield f"{counted(twice, 'caption file')} not read ({listing.name(twice[0])}): the .txt file beside it is"
    if orphans:
        yield f"{counted(orphans, 'caption file')} without an image ({listing.name(orphans[0])})"
    if kind == "metadata":
        yield from _keys(listing, column)
    elif column is not None and kind != "class":
        yield f"data.caption_column={column!r} not used: there is no {METADATA}"
    yield from _others(listing, use, files)


def _keys(listing: Listing, column: str | None) -> Iterator[str]:
    """Keys of metadata.jsonl that look like captions and are not read."""
    unread: dict[str, list[str]] = {}
    for file in metadata_files(listing):
        for where, row in metadata_rows(file, listing.name(file)):
            read = caption_key(row, column)
            for key, value in row.items():
                if key not in (read, "file_name") and _CAPTION_LIKE.search(key) and isinstance(value, str):
                    unread.setdefault(key, []).append(f"{where}: {_short(value)}")
    for key, found in unread.items():
        yield (
            f"{counted(found, 'caption')} in the key {key!r} not read ({found[0]}): data.caption_column={key} reads it"
        )


def _others(listing: Listing, use: Use, captions: Sequence[Path]) -> Iterator[str]:
    """Files that are neither images nor captions."""
    known = {*captions, *metadata_files(listing)} if listing.images else set()
    files = [file for file in listing.others if file not in known and not _ABOUT.fullmatch(file.name)]
    tables = [file for file in files if file.suffix.lower() in _TABLES]
    if tables and use not in ("class", "photos"):
        yield (
            f"{counted(tables, 'file')} not read ({listing.name(tables[0])}): captions are read from {METADATA}, or "
            "from .txt or .caption files of the images' names"
        )
    rest = [file for file in files if file not in tables]
    if rest:
        yield f"{counted(rest, 'file')} not read ({listing.name(rest[0])}): no known image format"


def _columns(files: Sequence[Path], use: Use, column: str | None) -> Iterator[str]:
    """Columns of Parquet that hold captions and are not read, each with its first text."""
    if use == "photos":
        return
    read: str | None = None
    rows: dict[str, int] = {}
    first: dict[str, Path] = {}
    for file in files:
        table = open_parquet(file)
        key = None if use in ("class", "prompt") else caption_key(table.schema_arrow.names, column)
        read = read or key
        for name in _texts(table.schema_arrow):
            if name != key:
                rows[name] = rows.get(name, 0) + table.metadata.num_rows
                first.setdefault(name, file)
    likely = [name for name in rows if _CAPTION_LIKE.search(name)]
    for name in likely or ([] if read or use in ("class", "prompt") else list(rows)):
        why = f"{read!r} is; " if read else ""
        fix = {
            "class": "class images all have the class prompt",
            "prompt": "data.captions=prompt gives every image the prompt",
        }.get(use, f"{why}data.caption_column={name} reads it")
        many = f"{rows[name]} caption{'s' if rows[name] != 1 else ''}"
        yield f"{many} in the column {name!r} not read ({first[name].name}: {_example(first[name], name)}): {fix}"


def _texts(schema: Any) -> list[str]:
    return [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]


def _example(file: Path, column: str) -> str:
    batch = next(open_parquet(file).iter_batches(1, columns=[column]), None)
    return _short(str(batch.column(0)[0].as_py() or "")) if batch is not None and len(batch) else "''"


def _short(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= most else line[: most - 1] + "…")
