"""The files of a folder by what they are: images, Parquet, and the rest. Only names are read.

Hidden files and what operating systems leave behind are not input and not reported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sdxl_ray.errors import UserError

_READABLE = r"png|jpe?g|jpe|jif|jfif?|pjpe?g|pjp|mpo|webp|bmp|dib|tiff?"
_UNREADABLE = (
    r"apng|gif|hei[cf]|hif|avifs?|psd|jp2|j2k|jxl|jxr|tga|ppm|pgm|exr|hdr"
    r"|dng|cr[23w]|n[er][fw]|arw|srf|sr2|raf|orf|rw2|pef|srw|x3f|3fr|iiq"
)
#: Suffixes that mean an image. Those that cannot be read are here too: they are refused by name, not left out.
_IMAGE = re.compile(rf"\.({_READABLE}|{_UNREADABLE})", re.IGNORECASE)
#: What systems put into folders of photos.
_LITTER = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
_LITTER_FOLDERS = frozenset({"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "__pycache__"})
#: Folders below the one that is read are looked through for this many files, to count what is left out.
_INSPECTED = 100_000


@dataclass(frozen=True)
class Listing:
    """A folder's files, in order of their names. others: neither images nor Parquet, captions among them."""

    folder: Path
    images: tuple[Path, ...]
    tables: tuple[Path, ...]
    others: tuple[Path, ...]

    def name(self, file: Path) -> str:
        """A file's path as seen from the folder."""
        return file.relative_to(self.folder).as_posix()


def list_folder(folder: Path, setting: str, *, recursive: bool) -> Listing:
    """The files right in a folder, or in every folder below it too. Raises UserError where one cannot be read."""

    def unreadable(error: OSError) -> None:
        where = str(folder) if error.filename in (None, str(folder)) else str(error.filename)
        raise UserError(f"{setting} {where!r} cannot be read: {error.strerror}; check its rights")

    files = _walk(folder, unreadable) if recursive else _right_in(folder, unreadable)
    found = sorted(files, key=lambda file: file.relative_to(folder).as_posix())
    images = tuple(file for file in found if is_image(file))
    tables = tuple(file for file in found if file.suffix.lower() == ".parquet")
    taken = {*images, *tables}
    return Listing(folder, images, tables, tuple(file for file in found if file not in taken))


def is_image(file: Path) -> bool:
    """Whether a file's name means an image."""
    return _IMAGE.fullmatch(file.suffix) is not None


def images_below(folder: Path, read: frozenset[Path] = frozenset()) -> list[Path]:
    """Images in folders below `folder`, without those in the (resolved) folders `read`, which something else reads."""
    found = []
    for count, file in enumerate(_walk(folder, lambda _: None, read)):
        if file.parent != folder and is_image(file):
            found.append(file)
        if count == _INSPECTED:
            break
    return sorted(found)


def _right_in(folder: Path, unreadable: Callable[[OSError], None]) -> Iterator[Path]:
    try:
        for file in folder.iterdir():
            if not file.is_dir() and not _is_litter(file.name):
                yield file
    except OSError as error:
        unreadable(error)


def _walk(
    folder: Path, unreadable: Callable[[OSError], None], without: frozenset[Path] = frozenset()
) -> Iterator[Path]:
    for where, folders, files in os.walk(folder, onerror=unreadable):
        here = Path(where)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name.lower() not in _LITTER_FOLDERS
            and not (without and (here / name).resolve() in without)
        )
        yield from (here / name for name in sorted(files) if not _is_litter(name))


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER or name.endswith("~")
