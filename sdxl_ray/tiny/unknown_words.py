"""What the embedded base knows, for those who write prompts for it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sdxl_ray.tiny.vocabulary import words

#: As CLIP's tokenizer cuts a prompt: the endings of contractions, and runs of letters.
_PIECES = re.compile(r"'(?:s|t|re|ve|m|ll|d)\b|[^\W\d_]+")


def unknown_words(texts: Iterable[str]) -> list[str]:
    """The words that are not one token of the embedded base, in order, each once; such words are spelled in pieces."""
    known = set(words())
    found = [piece for text in texts for piece in _PIECES.findall(text.lower())]
    return list(dict.fromkeys(word for word in found if len(word) > 1 and word[0] != "'" and word not in known))
