"""Further drawings, for the encoder that must tell any two designs apart: 24 classes in 5 sets are too few for that.

They are every animal, plant, food, place, game and object of the image sets that at least two of them draw, without
whatever a class or a subject could be taken for, and the classes as further sets draw them. The base never sees them.
"""

from __future__ import annotations

from sdxl_ray.tiny._build.catalog import CLASSES, DRAWINGS, FURTHER_SETS, Design
from sdxl_ray.tiny._build.sprites import Sprites

_FROM = "noto"  # the set whose names and categories are gone by; the others name most things alike
_CATEGORIES = ("Animals & Nature", "Food & Drink", "Travel & Places", "Objects", "Activities")
#: Parts of names of what is drawn many times with hardly a difference, or is hardly more than a line.
_LEFT_OUT = frozenset({"oclock", "thirty", "moon", "mailbox", "envelope", "speaker", "sun", "chart", "railway", "link"})
_SOLID = 0.15  # least share of a drawing's square that is ink


def further_designs(sprites: Sprites) -> list[Design]:
    """All further drawings, as drawn, in a fixed order, the classes' first; `sprites` knows them from now on."""
    found = {
        name: _drawn(sprites, DRAWINGS[name][_FROM], tuple(FURTHER_SETS)) for name in CLASSES if _FROM in DRAWINGS[name]
    }
    taken = {icon for icons in DRAWINGS.values() for icon in icons.values()}
    words = {*CLASSES, *_LEFT_OUT}
    for category in _CATEGORIES:
        for name in sprites.categories(_FROM)[category]:
            parts = {part.rstrip("s") for part in name.split("-")} | set(name.split("-"))
            if name in taken or parts & words:
                continue
            named = _drawn(sprites, name, ("flat", "noto", "noto1", "fx", *FURTHER_SETS))
            if len(named) > 1:
                found[name] = named
    sprites.admit(found)
    designs = [Design(name, set_name) for name, named in found.items() for set_name in named]
    return [design for design in designs if _solid(sprites, design)]


def _drawn(sprites: Sprites, name: str, sets: tuple[str, ...]) -> dict[str, str]:
    """How each of the sets that draw a thing spells it."""
    return {set_name: icon for set_name in sets if (icon := sprites.icon(set_name, name))}


def _solid(sprites: Sprites, design: Design) -> bool:
    drawn = sprites[design.class_name, design.set_name].getchannel("A")
    return sum(drawn.histogram()[129:]) > _SOLID * drawn.width * drawn.height
