"""Looks of a drawing: its body in another colour, with a pattern, wearing something.

The body of a drawing is the pixels near its most common colour; eyes, outlines, wheels keep theirs. Shading is kept by
scaling the new colour with each pixel's lightness relative to the body's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from sdxl_ray.tiny._build.catalog import COLORS, Design
from sdxl_ray.tiny._build.sprites import EDGE, Sprites

Pixels = np.ndarray[Any, np.dtype[np.float32]]
Color = tuple[int, int, int]

_BINS = 6  # a side of the colour cube in which the most common colour is looked for
_NEAR = 85.0  # distance in RGB within which a pixel belongs to the body, at equal lightness
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_KEPT = 4096  # drawings, 64 KiB each
_CELL = EDGE / 6  # period of a pattern


class Designs:
    """Draws a `Design` as RGBA, 128 x 128; what was drawn lately is kept."""

    def __init__(self, sprites: Sprites) -> None:
        self._sprites = sprites
        self._kept = lru_cache(_KEPT)(self._fresh)

    def draw(self, design: Design) -> Image.Image:
        return self._kept(design)

    def _fresh(self, design: Design) -> Image.Image:
        image = self._sprites[design.class_name, design.set_name]
        if design.color:
            second = COLORS[design.second] if design.pattern else None
            image = recolored(image, COLORS[design.color], design.pattern, second)
        if design.accessory:
            image = wearing(image, self._sprites["accessory", design.accessory], design.accessory)
        return image


def recolored(image: Image.Image, color: Color, pattern: str = "", second: Color | None = None) -> Image.Image:
    """The drawing with its body in `color`, or in `color` and `second` by `pattern` (striped, dotted, checkered)."""
    pixels = np.asarray(image, np.float32)
    body, lightness = _body(pixels)
    paint = np.broadcast_to(np.array(color, np.float32), (*body.shape, 3))
    if pattern:
        assert second is not None
        paint = np.where(_PATTERNS[pattern][..., None], np.array(second, np.float32), paint)
    shade = np.clip(lightness, 0.55, 1.35)[..., None]
    # Lighter than the body: towards white; darker: towards black.
    painted = np.where(shade > 1, paint + (255 - paint) * (shade - 1), paint * shade)
    mixed = pixels.copy()
    mixed[..., :3] += body[..., None] * (painted - pixels[..., :3])
    return Image.fromarray(mixed.clip(0, 255).round().astype(np.uint8), "RGBA")


def wearing(image: Image.Image, accessory: Image.Image, name: str) -> Image.Image:
    """The drawing with something on its head, in a frame that holds both."""
    share, center, bottom = _WORN[name]
    width = round(share * EDGE)
    worn = accessory.crop(accessory.getchannel("A").getbbox())
    worn = worn.resize((width, round(width * worn.height / worn.width)), Image.Resampling.LANCZOS)
    columns = np.asarray(image.getchannel("A"))[: EDGE // 3].max(axis=0)
    middle = int(np.average(np.arange(EDGE), weights=columns + 1e-3)) if center is None else round(center * EDGE)
    top = int(np.argmax(np.asarray(image.getchannel("A"))[:, middle] > 128))
    room = EDGE // 2
    canvas = Image.new("RGBA", (2 * EDGE, 2 * EDGE))
    canvas.alpha_composite(image, (room, room))
    canvas.alpha_composite(worn, (room + middle - width // 2, room + top + round(bottom * EDGE) - worn.height))
    ink = canvas.crop(canvas.getchannel("A").getbbox())
    edge = max(ink.size)
    square = Image.new("RGBA", (edge, edge))
    square.paste(ink, ((edge - ink.width) // 2, (edge - ink.height) // 2))
    return square.convert("RGBa").resize((EDGE, EDGE), Image.Resampling.LANCZOS).convert("RGBA")


#: accessory -> (width, horizontal centre or None for the head's, depth of its lower edge), as shares of the drawing
_WORN: dict[str, tuple[float, float | None, float]] = {
    "hat": (0.50, None, 0.10),
    "cap": (0.52, None, 0.14),
    "crown": (0.50, None, 0.10),
    "bow": (0.40, None, 0.16),
    "sunglasses": (0.62, None, 0.44),
}


def _body(pixels: Pixels) -> tuple[Pixels, Pixels]:
    """(share of each pixel that is body, 0 to 1; its lightness relative to the body's), both [H, W]."""
    solid = pixels[..., 3] > 128
    colors = pixels[solid][:, :3]
    cells = np.minimum((colors / 256 * _BINS).astype(int), _BINS - 1)
    keys = cells @ np.array([_BINS * _BINS, _BINS, 1])
    common = np.bincount(keys, minlength=_BINS**3)
    center = np.median(colors[keys == common.argmax()], axis=0)
    lightness = (pixels[..., :3] @ _LUMA + 12) / (center @ _LUMA + 12)
    # Compare hues at equal lightness, but do not call a dark outline or a white eye the body's shade.
    leveled = pixels[..., :3] / np.clip(lightness, 0.6, 1.3)[..., None]
    distance = np.linalg.norm(leveled - center, axis=-1)
    share = np.clip((_NEAR - distance) / (0.35 * _NEAR), 0, 1)
    return share.astype(np.float32), lightness.astype(np.float32)


def _patterns() -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
    """[H, W] masks of the second colour."""
    y, x = np.mgrid[:EDGE, :EDGE].astype(np.float32)
    column, row = x / _CELL, y / _CELL
    shifted = column + 0.5 * (np.floor(row) % 2)
    return {
        "striped": (row + 0.35 * column) % 1 < 0.5,
        "dotted": (shifted % 1 - 0.5) ** 2 + (row % 1 - 0.5) ** 2 < 0.11,
        "checkered": (np.floor(0.8 * column) + np.floor(0.8 * row)) % 2 == 0,
    }


_PATTERNS = _patterns()
