"""The two ways a command can fail: the input is wrong (exit code 2), or the run failed (exit code 1).

A message is one line and says three things: the value, the limit or the choices, the nearest fix.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """The caller's input is wrong; nothing has been started and nothing is lost. Exit code 2."""


class RunError(RuntimeError):
    """The run could not go on (NaN, a full disk, a lost worker). Earlier checkpoints are intact. Exit code 1."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'lora'?"` when something is close, else the choices themselves."""
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known)}"
