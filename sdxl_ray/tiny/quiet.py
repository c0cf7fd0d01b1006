"""Keeps the model libraries from drawing a progress bar for every file of a few hundred kilobytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Inside, transformers and diffusers draw no bar for every file that they read or write."""
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries: list[Any] = [diffusers.utils.logging, transformers.utils.logging]
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
