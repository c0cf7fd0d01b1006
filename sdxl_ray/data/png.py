"""PNG files, which can carry facts about their image as text chunks."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdxl_ray.errors import RunError
from sdxl_ray.io.atomic import write_bytes


def png_bytes(image: Image.Image, facts: Mapping[str, object] | None = None, *, compress_level: int = -1) -> bytes:
    """A PNG with an iTXt chunk per fact. compress_level: of zlib, 0 to 9; -1 is zlib's default."""
    chunks = PngInfo()
    for name, value in (facts or {}).items():
        chunks.add_itxt(name, str(value))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=chunks, compress_level=compress_level)
    return buffer.getvalue()


def save_png(image: Image.Image, path: Path, facts: Mapping[str, object]) -> None:
    """Write a whole PNG with a text chunk per fact; its folder is made. Raises RunError, as on a full disk."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, png_bytes(image, facts), shared=True)  # concurrent runs share folders
    except OSError as error:
        raise RunError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
