"""Peak memory of a run. Runs may follow each other in one process, and each tells its own peak.

restart_peak(device)                # when a run begins
peak_bytes(device)                  # since then

On Linux the pages of mapped files are left out, since the system takes them back when memory is short: those of
libraries and of weights that were read. The kernel keeps the peak of all resident pages, so each call takes off the
file pages of its window, and begins another window.
"""

from __future__ import annotations

import gc
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from sdxl_ray.models.host_memory import release_freed

_PROC = Path("/proc/self")


@dataclass
class _Window:
    """private: largest private bytes in the windows before; files: bytes of file pages when this one began."""

    private: int = 0
    files: int = 0


_window = _Window()


def restart_peak(device: torch.device) -> None:
    """Forget the peak so far: the allocator's on a GPU, else the process's.

    Linux can (proc(5), clear_refs). Elsewhere a CPU run's peak is at least that of the runs before it.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    release_freed()  # what glibc keeps of an earlier run is not this one's
    _begin(0)


def peak_bytes(device: torch.device) -> int:
    """The peak since `restart_peak`: allocated on a GPU, private to a CPU process (see above)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    found = _status()
    if "VmHWM" in found and "RssFile" in found:
        files = max(_window.files, found["RssFile"])
        peak = max(_window.private, found["VmRSS"] - found["RssFile"], found["VmHWM"] - files)
        _begin(peak)
        return peak
    unit = 1 if sys.platform == "darwin" else 1024  # kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _begin(peak: int) -> None:
    """Begin a window, with the peak of those before it."""
    with suppress(OSError):
        (_PROC / "clear_refs").write_text("5")
    _window.private, _window.files = peak, _status().get("RssFile", 0)


def _status() -> dict[str, int]:
    """Bytes by name of the process's memory; empty where there is no /proc."""
    with suppress(OSError):
        lines = (line.split() for line in (_PROC / "status").read_text().splitlines())
        return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1:] == ["kB"]}
    return {}
