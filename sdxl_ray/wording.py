"""English that prompts need: the indefinite article, the same one wherever a class is named."""

from __future__ import annotations

import re

_VOWEL = re.compile(r"[aeio]|um", re.IGNORECASE)


def article(words: str) -> str:
    """`"an"` for `elephant` and `umbrella`, `"a"` for `dog` and `unicorn`."""
    return "an" if _VOWEL.match(words) else "a"
