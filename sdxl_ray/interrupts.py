"""Ctrl-C and SIGTERM: the first ends a command with one line that says what is kept, the second ends it at once.

    with handled():                                   # once, around a whole command
        with keeping(lambda: "runs/dog keeps its checkpoints; the same command resumes it"):
            train()

The signal raises `Interrupted` in the main thread, so that every `finally` and context manager takes down what it
started. What is still running after GRACE_S is ended without ceremony.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

#: Seconds that a command may take to end itself.
GRACE_S = 9.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: What is kept, innermost last.
_kept: list[Callable[[], str]] = []


class Interrupted(KeyboardInterrupt):
    """The command was interrupted; `exit_code` is the shell's: 128 + the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum


@contextmanager
def keeping(line: Callable[[], str]) -> Iterator[None]:
    """Inside, an interrupt reports `line()`: what is kept and how to resume. The innermost counts."""
    _kept.append(line)
    try:
        yield
    finally:
        _kept.pop()


@contextmanager
def handled() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM are handled as described above. For the main thread."""
    before = {number: signal.signal(number, _handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(signum: int, frame: FrameType | None) -> None:
    for number in _SIGNALS:
        signal.signal(number, _end_at_once)
    text = _kept[-1]() if _kept else ""
    # os.write and not print: the main thread may be inside a print, whose buffer must not be entered twice.
    line = f"interrupted{': ' if text else ''}{' '.join(text.split())} (again: end at once)\n"
    start = "\r\x1b[2K" if sys.stderr.isatty() else ""
    os.write(2, f"{start}{line}".encode())
    timer = threading.Timer(GRACE_S, os._exit, (128 + signum,))
    timer.daemon = True
    timer.start()
    raise Interrupted(signum)


def _end_at_once(signum: int, frame: FrameType | None) -> None:
    os._exit(128 + signum)
