"""The NVIDIA GPUs of this machine as their driver reports them, without a framework."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A card as its driver names it, with all of its memory in MiB."""

    name: str
    memory_mib: int


def gpus_here() -> list[Gpu]:
    """This machine's cards; none where there is no driver, or one that does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=memory.total,name", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []
    reported = (line.partition(", ") for line in lines)
    return [Gpu(name.strip(), int(memory)) for memory, _, name in reported if memory.isdigit()]
