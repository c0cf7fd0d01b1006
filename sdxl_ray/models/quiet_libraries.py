"""Silences the model libraries' messages while models are read and written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside, transformers and diffusers draw no bar for every file that they read or write.

    From here on, without a GPU, DeepSpeed does not warn of that: transformers imports it when it reads or writes.
    """
    import diffusers.utils.logging
    import torch
    import transformers.utils.logging

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    libraries: list[Any] = [diffusers.utils.logging, transformers.utils.logging]
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
