"""Drawings in place of the published image sets, which tests must not fetch.

`data/drawings` holds those of six subjects' classes, CLASS-SET.webp; the card names their authors and licences.
"""

from __future__ import annotations

import zlib
from pathlib import Path

from PIL import Image, ImageDraw

from sdxl_ray.tiny._build.sprites import EDGE


class DrawnSprites:
    """`sprites[class_name, set_name]`: a body with two eyes; shape and colour depend on the key."""

    def __getitem__(self, key: tuple[str, str]) -> Image.Image:
        number = zlib.crc32("/".join(key).encode())
        body = tuple(90 + (number >> shift) % 140 for shift in (0, 8, 16))
        image = Image.new("RGBA", (EDGE, EDGE))
        pen = ImageDraw.Draw(image)
        shape = pen.ellipse if number % 2 else pen.rectangle
        shape((8, 20, 120, 110), fill=body)
        for x in (40, 80):
            pen.ellipse((x, 40, x + 12, 52), fill=(0, 0, 0))
        return image


class FiledSprites:
    """The real drawings of the classes of `tinycard.tuning.SUBJECTS_TUNED`."""

    def __getitem__(self, key: tuple[str, str]) -> Image.Image:
        with Image.open(Path(__file__).parent / "data" / "drawings" / f"{key[0]}-{key[1]}.webp") as filed:
            return filed.convert("RGBA")
