"""The folder of the C++ that DeepSpeed compiles when it is first used, without the locks of processes that died.

torch's builder holds a file named `lock` while it compiles and waits for as long as one is there, so a worker that was
killed in the middle would leave every later run waiting for ever. The folder is one host's own: there it can be known
whether anybody still holds the lock.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from pathlib import Path

import psutil
import torch

from sdxl_ray.cachefolder import cache_root

_LOOK_AGAIN_S = 0.2  # a lock is there a moment before its holder can be seen to hold it


def prepare_extensions() -> None:
    """Name the folder in the environment, unless the user did, and remove the locks there that nobody holds."""
    made_by = f"{platform.node()}-py{platform.python_version()}-torch{torch.__version__}"
    folder = os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache_root() / "extensions" / made_by))
    found = {path for path in Path(folder).glob("*/lock") if not _held(path)}
    if found:
        time.sleep(_LOOK_AGAIN_S)
    for path in found:
        if not _held(path):
            path.unlink(missing_ok=True)


def _held(path: Path) -> bool:
    """Whether a process of this machine has the file open."""
    wanted = str(path.resolve())
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # gone, or another user's: this folder is not theirs
            if any(opened.path == wanted for opened in process.open_files()):
                return True
    return False
