"""How much memory the container that this process runs in may use."""

from __future__ import annotations

from pathlib import Path


def container_memory_bytes(groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The container's memory limit (cgroup 2, else 1), or None when there is none; psutil sees the whole machine."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (groups / name).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() and int(text) < 2**60 else None
    return None
