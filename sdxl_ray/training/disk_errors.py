"""Disks and stores that cannot be written: what they say, as one line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdxl_ray.errors import RunError

#: What no second try mends.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def disk_problem(error: Exception) -> str | None:
    """What a disk or store that cannot be written says, or None for any other error."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # safetensors wraps OSError in its own exception type; a store gives up with RunError
    return str(error) if isinstance(error, RunError) or type(error).__name__ == "SafetensorError" else None


@contextmanager
def named_when_full(folder: Path) -> Iterator[None]:
    """Inside, whatever a run writes to a disk without room (samples, records, caches) ends in a RunError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise RunError(
            f"run folder {str(folder)!r} cannot be written: {error.strerror}; earlier checkpoints are intact: make "
            "room, and run the same command to resume"
        ) from error
