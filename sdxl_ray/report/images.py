"""Images inside the page: data URIs, small enough that a report can be mailed.

Every file is decoded and encoded again, so nothing but pixels gets into the page. Small images stay lossless; larger
ones shrink together until all fit the budget.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

#: Of all images in a page, before base64 makes them a third larger.
BUDGET_BYTES = 4_500_000
#: An image of at most this many pixels a side is kept as it is.
SMALL = 128
#: (longest side, JPEG quality), tried in this order.
_SIZES = ((384, 82), (320, 78), (256, 74), (192, 70), (128, 60), (96, 50))
_FORMATS = ("PNG", "JPEG", "WEBP")


@dataclass(frozen=True)
class Inlined:
    """An image for an `img`: uri, width and height in pixels. small: shown pixel by pixel, as it was drawn."""

    uri: str
    width: int
    height: int

    @property
    def small(self) -> bool:
        return max(self.width, self.height) <= SMALL


def inline_all(paths: Iterable[Path]) -> dict[Path, Inlined]:
    """Every path that is an image, as often as it is shown; one that cannot be read is left out."""
    counts = Counter(paths)
    made: dict[Path, tuple[str, bytes, int, int]] = {}
    for side, quality in _SIZES:
        made = {path: found for path in counts if (found := _encode(path, side, quality)) is not None}
        if sum(len(made[path][1]) * counts[path] for path in made) <= BUDGET_BYTES:
            break
    return {
        path: Inlined(f"data:{kind};base64,{base64.b64encode(data).decode()}", width, height)
        for path, (kind, data, width, height) in made.items()
    }


def _encode(path: Path, side: int, quality: int) -> tuple[str, bytes, int, int] | None:
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=_FORMATS) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    buffer = io.BytesIO()
    if max(image.size) <= SMALL:
        image.save(buffer, "PNG", optimize=True)
        return "image/png", buffer.getvalue(), *image.size
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=quality, optimize=True, progressive=True)
    return "image/jpeg", buffer.getvalue(), *image.size
