"""The images of a run: what they are (`Image`), where they are read (`ImageSet`), which are held out (`split`).

A `Image` is a small row that stays in memory for the whole set; pixels are read when they are wanted. Its key is the
SHA-256 of the file's bytes, so a renamed file is the same image and an edited one is another.
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

from sdxl_ray.config.schema import Data
from sdxl_ray.data import image_io as files
from sdxl_ray.data.image_io import BadImage
from sdxl_ray.data.image_sources import ImageEntry, Reader, entries
from sdxl_ray.errors import UserError

log = logging.getLogger(__name__)

Role = Literal["instance", "class"]

#: Up to here every image is decoded once by the scan, so that a truncated one is found before anything starts.
DECODED_AT_SCAN = 2_000
_NAMED = 50


@dataclass(frozen=True, slots=True)
class DatasetImage:
    """One image, without its pixels."""

    key: str  # SHA-256 of the file's bytes, in hex
    source: str  # a path, or "file.parquet#row"
    caption: str
    width: int  # pixels, upright
    height: int
    role: Role


def image_row(name: str, data: bytes, caption: str, role: Role = "instance", *, decode: bool = True) -> DatasetImage:
    """The row of one image, from its bytes; `name` becomes its source. Pure, for any map over a large set.

    `decode` reads every pixel, to find damage; without it the header alone is read. Raises BadImage.
    """
    width, height = (files.verify if decode else files.probe)(data, Path(name).name)
    return DatasetImage(hashlib.sha256(data).hexdigest(), name, caption, width, height, role)


class ImageSet:
    """Images in a fixed order, and the way to their pixels. Pickles without open files."""

    def __init__(self, images: Iterable[DatasetImage]) -> None:
        self.images = tuple(images)
        self._reader = Reader()

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[DatasetImage]:
        return iter(self.images)

    def read(self, image: DatasetImage) -> Image.Image:
        """Upright RGB pixels. Raises BadImage, also when the file is no longer the one that was scanned."""
        data = self._reader.read(image.source)
        name = Path(image.source).name
        if hashlib.sha256(data).hexdigest() != image.key:
            raise BadImage(f"image {name!r} has changed since the run began: put it back, or start a new run")
        return files.open_image(data, name)

    def index_rows(self) -> list[dict[str, Any]]:
        """One plain dict an image, for Arrow, JSON or a process border."""
        return [asdict(image) for image in self.images]

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> ImageSet:
        """The set that `index_rows`, or a map of `image_row` over a large set, described."""
        return cls(unique(DatasetImage(**row) for row in rows))


def scan(data: Data) -> ImageSet:
    """The instance images of `data.images` (which must be set), before any is held out.

    Raises UserError; unusable images are all listed in one.
    """
    assert data.images is not None
    return _scan(instance_entries(data, data.images, "data.images"), "instance")


def instance_entries(data: Data, where: str, setting: str) -> list[ImageEntry]:
    """The images of `data.images` or `data.validation` with their captions, unread. Raises UserError."""
    return entries(
        where,
        data.captions,
        data.instance_prompt,
        setting,
        recursive=data.recursive,
        column=data.caption_column,
    )


def split(images: ImageSet, data: Data) -> tuple[ImageSet, ImageSet]:
    """(to train on, held out): the folder `data.validation`, else `data.holdout` images chosen by their content.

    The choice depends neither on names nor on order, and equal images with different captions stay together.
    `data.limit` then keeps the first so many to train on. Raises UserError when nothing is left to train on, when there
    are fewer than the limit, or when a held-out image is also trained on.
    """
    if data.validation is not None:
        held_out = _scan(instance_entries(data, data.validation, "data.validation"), "instance")
        trained = {image.key: image.source for image in images}
        for image in held_out:
            if image.key in trained:
                raise UserError(
                    f"held-out image {Path(image.source).name!r} is also trained on, as {trained[image.key]!r}: "
                    "remove it from data.validation or from data.images"
                )
        return _limited(images, data), held_out
    keys = sorted({image.key for image in images})
    if len(keys) <= data.holdout:
        raise UserError(
            f"no instance images left after the held-out split: {len(keys)} found, {data.holdout} held out; "
            f"add images or set data.holdout={max(0, len(keys) - 1)}"
        )
    chosen = set(keys[: data.holdout])
    return (
        _limited(ImageSet(image for image in images if image.key not in chosen), data),
        ImageSet(image for image in images if image.key in chosen),
    )


def _limited(images: ImageSet, data: Data) -> ImageSet:
    if data.limit is None:
        return images
    if len(images) < data.limit:
        raise UserError(f"data.limit = {data.limit}: there are only {len(images)} images to train on; leave it out")
    return ImageSet(images.images[: data.limit])


def scan_class(data: Data) -> ImageSet:
    """The class images given in `data.prior.images`, at most `data.prior.num_class_images`; may be empty."""
    if data.prior is None or data.prior.images is None:
        return ImageSet(())
    where = data.prior.images
    given = _scan(entries(where, "prompt", data.class_prompt, "data.prior.images", recursive=data.recursive), "class")
    if len(given) > data.prior.num_class_images:
        log.warning(
            "data.prior.images has %d images; %d are used (data.prior.num_class_images)",
            len(given),
            data.prior.num_class_images,
        )
        return ImageSet(sorted(given, key=lambda image: image.key)[: data.prior.num_class_images])
    return given


def class_folder(folder: Path | str, prompt: str) -> ImageSet:
    """The set of a folder of generated class images, all with the class prompt."""
    return _scan(entries(str(folder), "prompt", prompt, "the class images' folder"), "class")


def unique(images: Iterable[DatasetImage]) -> Iterator[DatasetImage]:
    """Drop images with the same bytes and the same caption as an earlier one, and log which.

    The same bytes with another caption stay: that is an image described twice, not a copy left behind.
    """
    first: dict[tuple[str, str], str] = {}
    for image in images:
        what = (image.key, image.caption)
        if what in first:
            log.warning("image %s is the same as %s: one is used", image.source, first[what])
        else:
            first[what] = image.source
            yield image


def _scan(found: list[ImageEntry], role: Role) -> ImageSet:
    reader = Reader()
    decode = len(found) <= DECODED_AT_SCAN

    def row(entry: ImageEntry) -> DatasetImage | BadImage:
        try:
            return image_row(entry.source, reader.read(entry.source), entry.caption, role, decode=decode)
        except BadImage as error:
            return error

    if ".parquet#" in found[0].source:
        rows = list(map(row, found))  # in order: threads would send the one cursor back and forth
    else:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            rows = list(pool.map(row, found))
    bad = [(entry.source, item) for entry, item in zip(found, rows, strict=True) if isinstance(item, BadImage)]
    if bad:
        others = [Path(source).name for source, _ in bad[1:]]
        listed = ", ".join(others[:_NAMED]) + (f" and {len(others) - _NAMED} more" if len(others) > _NAMED else "")
        raise BadImage(f"{bad[0][1]}" + (f"; {len(others)} more cannot be used: {listed}" if others else ""))
    return ImageSet(unique(item for item in rows if isinstance(item, DatasetImage)))
