"""A document as one HTML file: no script, no network, no font of its own; it opens from disk and prints.

The template knows blocks, not sections. A content security policy in the page forbids every request, so that
"self-contained" is the browser's promise too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from sdxl_ray import __version__
from sdxl_ray.io.atomic import write_text
from sdxl_ray.report.document import AnswerBlock, Document, Gallery, Panel, Panels, Tile
from sdxl_ray.report.drawing import described
from sdxl_ray.report.images import inline_all


def html(document: Document) -> str:
    """The page."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    images = inline_all(path for tile in tiles(document) if (path := tile.path) is not None)
    numbers = {id(panel): number for number, panel in enumerate(_panels(document))}
    templates = resources.files("sdxl_ray.report") / "templates"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    # "CLIP-T" would break at its hyphen in a narrow column.
    environment.filters["unbroken"] = lambda text: re.sub(r"(?<=[A-Z])-(?=[A-Z]\b)", "\u2011", text)
    template = environment.from_string((templates / "report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        document=document,
        style=Markup((templates / "report.css").read_text(encoding="utf-8")),
        source_of=lambda tile: images.get(tile.path) if tile.path is not None else None,
        svg=lambda panel: Markup(described(panel.plot(), panel.alt, numbers[id(panel)])),
        mark=_mark,
        version=__version__,
    )


def tiles(document: Document) -> Iterator[Tile]:
    """Every image of the document."""
    for section in document.sections:
        for block in section.blocks:
            if isinstance(block, AnswerBlock):
                yield from block.tiles
            elif isinstance(block, Gallery):
                yield from block.photos
                yield from (tile for group in block.groups for _, row in group.rows for tile in row)


def _panels(document: Document) -> Iterator[Panel]:
    for section in document.sections:
        for block in section.blocks:
            if isinstance(block, Panels):
                yield from block.panels


def _mark(number: int) -> str:
    """The sign of the note at that place: a, b, ... z, then numbers."""
    return chr(ord("a") + number) if number < 26 else str(number + 1)


def write(document: Document, path: Path) -> Path:
    """Write the page."""
    return write_text(path, html(document))
