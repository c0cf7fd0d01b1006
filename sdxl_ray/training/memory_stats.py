"""Peak memory of a run. Runs may follow each other in one process, and each tells its own peak.

restart_peak(device)                # when a run begins
peak_bytes(device)                  # since then
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch


def restart_peak(device: torch.device) -> None:
    """Forget the peak so far: the allocator's on a GPU, else the process's.

    Linux can (proc(5), clear_refs). Elsewhere a CPU run's peak is at least that of the runs before it.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)  # what glibc keeps of an earlier run is not this one's
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The peak since `restart_peak`: allocated on a GPU, resident in a CPU process, libraries included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
