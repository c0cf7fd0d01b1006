"""One process at a time in a folder: two would append to the same records and remove each other's checkpoints."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sdxl_ray.errors import UserError

#: A process that was killed a moment ago may still be ending, and on another node Ray is told of it a little later.
_WAIT_S = 10.0


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, this process alone works in `folder`: the file `.NAME.lock` beside it is locked and says who does.

    The system gives the lock back when its process ends, however it ends, so none is ever stale. A disk that knows no
    locks has none, and neither have two machines that mirror one URL. Raises UserError when another process has it.
    """
    file = folder.with_name(f".{folder.name}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("a+")
    except OSError:  # who makes the folder says what is wrong
        yield
        return
    with stream:
        try:
            _lock(stream)
        except BlockingIOError:
            stream.seek(0)
            raise UserError(
                f"folder {str(folder)!r} is in use by {stream.read() or 'another process'}: wait for it or end it, "
                "or give another --name"
            ) from None
        except OSError:
            yield
            return
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        yield


def _lock(stream: IO[str]) -> None:
    until = time.monotonic() + _WAIT_S
    while True:
        try:
            return fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
