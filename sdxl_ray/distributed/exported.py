"""Environment variables that Ray reads, set for as long as something runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def exported(values: Mapping[str, str], *, unless_set: bool = False) -> Iterator[None]:
    """Inside, this process and those that it starts have these variables; `unless_set`: what the user has set stays."""
    before = {name: os.environ.get(name) for name in values}
    os.environ |= {name: value for name, value in values.items() if not (unless_set and before[name] is not None)}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
