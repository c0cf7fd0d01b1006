"""The two ways a command can fail: the input is wrong (exit code 2), or the run failed (exit code 1).

A message is one line and says three things: the value, the limit or the choices, the nearest fix.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


class UserError(ValueError):
    """The caller's input is wrong; nothing has been started and nothing is lost. Exit code 2."""


class RunError(RuntimeError):
    """The run could not continue (NaN, a full disk, a lost worker). Earlier checkpoints are intact. Exit code 1."""


#: How alike two words must be: `dgo` and `dog` are by 0.67, `repeats` and `crop_variants` by 0.5.
_ALIKE = 0.65


def nearest(word: str, choices: Iterable[str]) -> str:
    """`"did you mean 'lora'?"` when something is close, whatever its case and accents, else the choices themselves."""
    known = sorted(choices)
    close = closest(word, known)
    return f"did you mean {close!r}?" if close is not None else f"choose from {', '.join(known)}"


def closest(word: str, choices: Iterable[str], alike: float = _ALIKE) -> str | None:
    """The choice that is nearly `word`, or None."""
    spelt = {_folded(choice): choice for choice in choices}
    close = difflib.get_close_matches(_folded(word), spelt, n=1, cutoff=alike)
    return spelt[close[0]] if close else None


def _folded(word: str) -> str:
    """Without what differs between systems: composed or decomposed accents, case, the way slashes lean."""
    return unicodedata.normalize("NFC", word).casefold().replace("\\", "/")
