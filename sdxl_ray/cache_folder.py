"""Where this machine keeps what can be computed or fetched again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/sdxl_ray`, or `~/.cache/sdxl_ray`; it need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sdxl_ray"
