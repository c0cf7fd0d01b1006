"""A picture as the bytes of a file. It holds the interpreter for little of its time: call it in a thread."""

from __future__ import annotations

import io
from collections.abc import Mapping

from PIL import Image
from PIL.PngImagePlugin import PngInfo

#: On a photo of 1024 pixels: two thirds of the time of zlib's default level, for 13 % more bytes.
_PNG_LEVEL = 1
_QUALITY = 92


def encode(picture: Image.Image, output_format: str, facts: Mapping[str, object]) -> bytes:
    """PNG with a text chunk per fact, JPEG or WebP (which carry none)."""
    buffer = io.BytesIO()
    if output_format == "png":
        chunks = PngInfo()
        for key, value in facts.items():
            chunks.add_itxt(key, str(value))
        picture.save(buffer, "PNG", pnginfo=chunks, compress_level=_PNG_LEVEL)
    else:
        picture.convert("RGB").save(buffer, output_format.upper(), quality=_QUALITY)
    return buffer.getvalue()
