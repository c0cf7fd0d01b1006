"""One process at a time in a folder: two would append to the same records and remove each other's checkpoints."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from filelock import AcquireReturnProxy, BaseFileLock, FileLock, SoftFileLock, Timeout

from sdxl_ray.errors import UserError

#: A process that was killed a moment ago may still be ending, and on another node Ray learns of it a little later.
_WAIT_S = 10.0


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, this process alone works in `folder`: the file `.NAME.lock` beside it is locked and says who does.

    The system releases the lock when its process ends, however it ends. Where the file system has no locks (some NFS
    mounts), the file `.NAME.lock-marker` is the lock: a dead owner on this host does not keep it. A folder that cannot
    be written has no lock, and two machines that mirror one URL do not see each other's. Raises UserError when another
    process has it.
    """
    file = folder.with_name(f".{folder.name}.lock")
    held = _acquire(folder, file)
    if held is None:  # who makes the folder says what is wrong
        yield
        return
    with held:
        with contextlib.suppress(OSError):
            since = datetime.now().astimezone().isoformat(" ", "seconds")
            file.write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}", encoding="utf-8")
        yield


def _acquire(folder: Path, file: Path) -> AcquireReturnProxy[BaseFileLock] | None:
    """The system's lock on `file`, else a marker file beside it, else None. Raises UserError when it is held."""
    marker = file.with_name(f"{file.name}-marker")
    locks: tuple[tuple[BaseFileLock, str], ...] = (
        (FileLock(file, fallback_to_soft=False), ""),
        (SoftFileLock(marker), f", or delete {str(marker)!r} if that process is gone"),
    )
    for lock, fix in locks:
        try:
            return lock.acquire(timeout=_WAIT_S, poll_interval=0.2)
        except Timeout:
            raise UserError(
                f"folder {str(folder)!r} is in use by {_owner(file)}: wait for it or end it, or give "
                f"another --name{fix}"
            ) from None
        except OSError:
            continue
    return None


def _owner(file: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return file.read_text(encoding="utf-8") or "another process"
    return "another process"
