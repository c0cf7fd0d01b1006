"""A contact sheet: images in rows and columns with labels, on white."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_TILE = 192  # pixels; smaller images are enlarged to this, so that 64 px ones can be judged
_LARGEST_TILE = 512
_GAP = 8
_FONT = 15
_ROW_LABEL_WIDTH = 150


def grid(rows: Sequence[Sequence[Image.Image]], row_labels: Sequence[str], column_labels: Sequence[str]) -> Image.Image:
    """One RGB image; rows may be of different lengths, and images of different sizes keep their proportions.

    Raises ValueError when there is no image, or the labels do not count up.
    """
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise ValueError("a grid needs at least one image")
    if len(row_labels) != len(rows) or len(column_labels) != columns:
        raise ValueError(f"{len(rows)} x {columns} images, but {len(row_labels)} x {len(column_labels)} labels")
    tile = min(_LARGEST_TILE, max(_TILE, *(max(image.size) for row in rows for image in row)))
    font = ImageFont.load_default(_FONT)
    left = _ROW_LABEL_WIDTH if any(row_labels) else 0
    heads = [_wrap(label, tile, font) for label in column_labels]
    top = _height(max(heads, key=len), font)
    step = tile + _GAP
    sheet = Image.new("RGB", (left + columns * step + _GAP, top + len(rows) * step + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for column, lines in enumerate(heads):
        pen.multiline_text((left + _GAP + column * step, _GAP), "\n".join(lines), fill="black", font=font)
    for index, (row, label) in enumerate(zip(rows, row_labels, strict=True)):
        y = top + _GAP + index * step
        lines = _wrap(label, left - _GAP, font)[: tile // (_FONT + 4)]
        pen.multiline_text((_GAP, y), "\n".join(lines), fill="black", font=font)
        for column, image in enumerate(row):
            fitted = _fit(image, tile)
            x = left + _GAP + column * step
            sheet.paste(fitted, (x + (tile - fitted.width) // 2, y + (tile - fitted.height) // 2))
    return sheet


def _fit(image: Image.Image, tile: int) -> Image.Image:
    """The image in a tile, whole. Whole-number enlargement keeps the pixels visible as they are."""
    image = image.convert("RGB")
    longest = max(image.size)
    factor = tile // longest
    if factor >= 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    size = (max(1, round(image.width * tile / longest)), max(1, round(image.height * tile / longest)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Lines of at most `width` pixels; a single longer word is cut where it must be."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        rest = word
        while font.getlength(rest) > width and len(rest) > 1:
            keep = next(n for n in range(len(rest) - 1, 0, -1) if n == 1 or font.getlength(rest[:n]) <= width)
            lines.append(rest[:keep])
            rest = rest[keep:]
        lines.append(rest)
    return lines


def _height(lines: list[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    if not lines:
        return 0
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    return int(pen.multiline_textbbox((0, 0), "\n".join(lines), font=font)[3]) + _GAP
