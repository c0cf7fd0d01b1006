"""Captions of scenes in plain English: what, in which colour, where, sometimes how it is drawn.

Phrasing varies on purpose, and a share of captions holds a rare word before the class, so that free prompts and new
identifier words are nothing that the base has not met.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdxl_ray.tiny._build.catalog import COLORS, PATTERNS, SETS, Design
from sdxl_ray.tiny._build.places import PLACES
from sdxl_ray.tiny.vocabulary import IDENTIFIERS

_OPENINGS = ("a photo of {}", "a picture of {}", "an image of {}", "a close up of {}", "a photograph of {}")
_RARE_SHARE, _STYLE_SHARE, _BARE_SHARE, _PLACE_FIRST_SHARE = 0.06, 0.15, 0.2, 0.06
_FILLERS = ("nice", "good", "cute", "beautiful", "funny")
_FILLER_SHARE = 0.08


def caption(things: Sequence[Design], place: str, rng: np.random.Generator) -> str:
    """One sentence, without a full stop. `place` "" leaves the place unsaid."""
    where = str(rng.choice(PLACES[place].phrases)) if place else ""
    if not things:
        return f"a photo of nothing {where}"
    if len(things) == 1 and rng.random() < _RARE_SHARE:
        rare = str(rng.choice(IDENTIFIERS))
        return f"a photo of {rare} {_noun(things[0], rng, filler=False)} {where}".strip()
    what = " and ".join(with_article(_noun(thing, rng)) for thing in things)
    chance = rng.random()
    if chance < _STYLE_SHARE and len(things) == 1:
        style = SETS[things[0].set_name].style
        return f"{with_article(style)} of {what} {where}".strip()
    if chance < _STYLE_SHARE + _PLACE_FIRST_SHARE and where:
        return f"{where} , {what}"
    if chance > 1 - _BARE_SHARE:
        return f"{what} {where}".strip()
    return f"{rng.choice(_OPENINGS).format(what)} {where}".strip()


def with_article(phrase: str) -> str:
    """The phrase behind "a" or "an"."""
    return f"{'an' if phrase[0] in 'aeio' or phrase.startswith('umbrella') else 'a'} {phrase}"


def describe(design: Design) -> str:
    """A colour or pattern, if it has one, and the class: "purple frog", "striped cat"."""
    look = design.pattern or design.color
    assert not look or look in COLORS or look in PATTERNS
    return f"{look} {design.class_name}".strip()


def _noun(design: Design, rng: np.random.Generator, filler: bool = True) -> str:
    words = [str(rng.choice(_FILLERS))] if filler and rng.random() < _FILLER_SHARE else []
    return " ".join([*words, describe(design)])
