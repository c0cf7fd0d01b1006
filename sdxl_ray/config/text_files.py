"""Text files of users: UTF-8, and UTF-16 or UTF-8 with the mark that Windows writes before it; others are named."""

from __future__ import annotations

import codecs
from pathlib import Path

from sdxl_ray.errors import UserError

_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def read_text(file: Path, where: str) -> str:
    """The text of a file. Raises UserError that begins with `where`: unreadable, or another encoding and which."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}; check the path and its rights") from None
    return decoded(data, where).replace("\r\n", "\n").replace("\r", "\n")


def decoded(data: bytes, where: str) -> str:
    """Bytes as text. Raises UserError that begins with `where` and says which encoding they seem to have."""
    mark = next((mark for mark in _MARKS if data.startswith(mark) and len(data) > 2), b"")
    try:
        text = data[len(mark) :].decode(_MARKS.get(mark, "utf-8"))
    except UnicodeDecodeError as error:
        if mark:
            raise UserError(f"{where} cannot be read: it begins as {_MARKS[mark].upper()} and is cut off") from None
        guess = "UTF-16" if 0 in data else "Latin-1 or Windows-1252"
        raise UserError(
            f"{where} is not UTF-8 at byte {error.start}, it seems to be {guess}: save it as UTF-8"
        ) from None
    if "\0" in text:  # letters of UTF-16 are every other byte, which UTF-8 allows
        raise UserError(f"{where} is not UTF-8, it seems to be UTF-16 without a mark: save it as UTF-8")
    return text
