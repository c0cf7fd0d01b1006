"""The pictures of a run: what they are (`Picture`), where they are read (`PictureSet`), which are held out (`split`).

A `Picture` is a small row that stays in memory for the whole set; pixels are read when they are wanted. Its key is the
SHA-256 of the file's bytes, so a renamed file is the same picture and an edited one is another.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from sdxl_ray.core import pictures as files
from sdxl_ray.core.pictures import BadPicture
from sdxl_ray.core.sources import Entry, Reader, entries
from sdxl_ray.errors import UserError
from sdxl_ray.sections import Data

log = logging.getLogger(__name__)

Role = Literal["instance", "class"]

#: Up to here every picture is decoded once by the scan, so that a truncated one is found before anything starts.
DECODED_AT_SCAN = 2_000
_NAMED = 50


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, without its pixels."""

    key: str  # SHA-256 of the file's bytes, in hex
    source: str  # a path, or "file.parquet#row"
    caption: str
    width: int  # pixels, upright
    height: int
    role: Role


def picture_row(name: str, data: bytes, caption: str, role: Role = "instance", *, decode: bool = True) -> Picture:
    """The row of one picture, from its bytes; `name` becomes its source. Pure, for any map over a large set.

    `decode` reads every pixel, to find damage; without it the header alone is read. Raises BadPicture.
    """
    width, height = (files.verify if decode else files.probe)(data, Path(name).name)
    return Picture(hashlib.sha256(data).hexdigest(), name, caption, width, height, role)


class PictureSet:
    """Pictures in a fixed order, and the way to their pixels. Pickles without open files."""

    def __init__(self, pictures: Iterable[Picture]) -> None:
        self.pictures = tuple(pictures)
        self._reader = Reader()

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[Picture]:
        return iter(self.pictures)

    def read(self, picture: Picture) -> Image.Image:
        """Upright RGB pixels. Raises BadPicture, also when the file is no longer the one that was scanned."""
        data = self._reader.read(picture.source)
        name = Path(picture.source).name
        if hashlib.sha256(data).hexdigest() != picture.key:
            raise BadPicture(f"picture {name!r} has changed since the run began: put it back, or start a new run")
        return files.open_picture(data, name)

    def index_rows(self) -> list[dict[str, Any]]:
        """One plain dict a picture, for Arrow, JSON or a process border."""
        return [asdict(picture) for picture in self.pictures]

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> PictureSet:
        """The set that `index_rows`, or a map of `picture_row` over a large set, described."""
        return cls(unique(Picture(**row) for row in rows))


def scan(data: Data) -> PictureSet:
    """The instance pictures of `data.images` (which must be set), before any is held out.

    Raises UserError; unusable pictures are all listed in one.
    """
    assert data.images is not None
    return _scan(instance_entries(data, data.images, "data.images"), "instance")


def instance_entries(data: Data, where: str, setting: str) -> list[Entry]:
    """The images of `data.images` or `data.validation` with their captions, unread. Raises UserError."""
    return entries(
        where,
        data.captions,
        data.instance_prompt,
        setting,
        recursive=data.recursive,
        column=data.caption_column,
    )


def split(pictures: PictureSet, data: Data) -> tuple[PictureSet, PictureSet]:
    """(to train on, held out): the folder `data.validation`, else `data.holdout` pictures chosen by their content.

    The choice depends neither on names nor on order, and equal pictures with different captions stay together.
    `data.limit` then keeps the first so many to train on. Raises UserError when nothing is left to train on, when there
    are fewer than the limit, or when a held-out picture is also trained on.
    """
    if data.validation is not None:
        held_out = _scan(instance_entries(data, data.validation, "data.validation"), "instance")
        trained = {picture.key: picture.source for picture in pictures}
        for picture in held_out:
            if picture.key in trained:
                raise UserError(
                    f"held-out picture {Path(picture.source).name!r} is also trained on, as {trained[picture.key]!r}: "
                    "remove it from data.validation or from data.images"
                )
        return _limited(pictures, data), held_out
    keys = sorted({picture.key for picture in pictures})
    if len(keys) <= data.holdout:
        raise UserError(
            f"no instance pictures left after the held-out split: {len(keys)} found, {data.holdout} held out; "
            f"add pictures or set data.holdout={max(0, len(keys) - 1)}"
        )
    chosen = set(keys[: data.holdout])
    return (
        _limited(PictureSet(picture for picture in pictures if picture.key not in chosen), data),
        PictureSet(picture for picture in pictures if picture.key in chosen),
    )


def _limited(pictures: PictureSet, data: Data) -> PictureSet:
    if data.limit is None:
        return pictures
    if len(pictures) < data.limit:
        raise UserError(f"data.limit = {data.limit}: there are only {len(pictures)} pictures to train on; leave it out")
    return PictureSet(pictures.pictures[: data.limit])


def scan_class(data: Data) -> PictureSet:
    """The class pictures given in `data.prior.images`, at most `data.prior.count`; an empty set when none are given."""
    if data.prior is None or data.prior.images is None:
        return PictureSet(())
    where = data.prior.images
    given = _scan(entries(where, "prompt", data.class_prompt, "data.prior.images", recursive=data.recursive), "class")
    if len(given) > data.prior.count:
        log.warning("data.prior.images has %d pictures; %d are used (data.prior.count)", len(given), data.prior.count)
        return PictureSet(sorted(given, key=lambda picture: picture.key)[: data.prior.count])
    return given


def class_folder(folder: Path | str, prompt: str) -> PictureSet:
    """The set of a folder of generated class pictures, all with the class prompt."""
    return _scan(entries(str(folder), "prompt", prompt, "the class pictures' folder"), "class")


def unique(pictures: Iterable[Picture]) -> Iterator[Picture]:
    """Drop pictures with the same bytes and the same caption as an earlier one, and log which.

    The same bytes with another caption stay: that is a picture described twice, not a copy left behind.
    """
    first: dict[tuple[str, str], str] = {}
    for picture in pictures:
        what = (picture.key, picture.caption)
        if what in first:
            log.warning("picture %s is the same as %s: one is used", picture.source, first[what])
        else:
            first[what] = picture.source
            yield picture


def _scan(found: list[Entry], role: Role) -> PictureSet:
    reader = Reader()
    decode = len(found) <= DECODED_AT_SCAN

    def row(entry: Entry) -> Picture | BadPicture:
        try:
            return picture_row(entry.source, reader.read(entry.source), entry.caption, role, decode=decode)
        except BadPicture as error:
            return error

    if ".parquet#" in found[0].source:
        rows = list(map(row, found))  # in order: threads would send the one cursor back and forth
    else:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            rows = list(pool.map(row, found))
    bad = [(entry.source, item) for entry, item in zip(found, rows, strict=True) if isinstance(item, BadPicture)]
    if bad:
        others = [Path(source).name for source, _ in bad[1:]]
        listed = ", ".join(others[:_NAMED]) + (f" and {len(others) - _NAMED} more" if len(others) > _NAMED else "")
        raise BadPicture(f"{bad[0][1]}" + (f"; {len(others)} more cannot be used: {listed}" if others else ""))
    return PictureSet(unique(item for item in rows if isinstance(item, Picture)))
