"""What every test needs: one thread a process, no network, and the command line as a child process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Before torch is imported: two pools of threads on two cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test that reaches for the hub should fail here as it would on a machine without a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """`cli("plan", "lora")` runs the command in a process of its own, in an empty folder."""

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sdxl_ray", *words],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "120", **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run
