"""Texts that are longer than the text encoders take: how many tokens they have, what is cut off, and the setting that
would use it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sdxl_ray.config.schema import TOKEN_LENGTHS, MaxTokenLength
from sdxl_ray.models.text_encoders import chunk_tokens, expansions, most_tokens

_AT_ONCE = 1024
_SHOWN = 200  # characters of what is cut off


@dataclass(frozen=True)
class Truncation:
    """A text of which the first `used` of its tokens are used; `lost` is the rest.

    needed: the `max_token_length` that would use it all, or None; most: tokens that are used at the largest one.
    """

    text: str
    tokens: int
    used: int
    lost: str
    needed: MaxTokenLength | None
    most: int

    @property
    def shown(self) -> str:
        """What is cut off, in quotes, and shortened where it is long."""
        more = len(self.lost) - _SHOWN
        return repr(self.lost) if more <= 0 else f"{self.lost[:_SHOWN]!r} and {more} characters more"

    def fix(self, setting: str) -> str:
        """What to do about it. setting: how the length is set, up to the number."""
        if self.needed is not None:
            return f"{setting}{self.needed} uses it all"
        larger = f"{setting}{TOKEN_LENGTHS[-1]} uses {self.most}, " if self.most > self.used else ""
        return f"{larger}shorten it to {self.most} tokens"


def truncations(
    tokenizers: Sequence[Any], texts: Iterable[str], max_token_length: MaxTokenLength
) -> dict[str, Truncation]:
    """Those of the texts that are cut off after `max_token_length`, by text; of two tokenizers the one that cuts more.

    Texts may repeat.
    """
    different = list(dict.fromkeys(texts))
    found: dict[str, Truncation] = {}
    for tokenizer in tokenizers:
        size, used = chunk_tokens(tokenizer), most_tokens(tokenizer, max_token_length)
        expanded = expansions(tokenizer)
        for start in range(0, len(different), _AT_ONCE):
            some = different[start : start + _AT_ONCE]
            words = tokenizer(some, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
            for text, ids, places in zip(some, words.input_ids, words.offset_mapping, strict=True):
                counts = [len(expanded.get(token, (token,))) for token in ids]
                offsets = [place for place, count in zip(places, counts, strict=True) for _ in range(count)]
                tokens = len(offsets)
                if tokens <= used or (text in found and found[text].tokens >= tokens):
                    continue
                chunks = math.ceil(tokens / size)
                needed = TOKEN_LENGTHS[chunks - 1] if chunks <= len(TOKEN_LENGTHS) else None
                lost = text[offsets[used][0] :]
                found[text] = Truncation(text, tokens, used, lost, needed, most_tokens(tokenizer, TOKEN_LENGTHS[-1]))
    return found


def prompt_notes(
    tokenizers: Sequence[Any], prompts: Iterable[tuple[str, str]], max_token_length: MaxTokenLength, setting: str
) -> list[str]:
    """A line for each of `(what it is, text)` that is not used to its end."""
    named = {text: name for name, text in prompts}
    return [
        f"{named[text]} has {cut.tokens} tokens, the first {cut.used} are used; cut off: {cut.shown}; "
        f"{cut.fix(setting)}"
        for text, cut in truncations(tokenizers, named, max_token_length).items()
    ]
