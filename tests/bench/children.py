"""Runs arms, each in a process of its own: its peak memory is its own, and its end is not the table's."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arms import Arm
from servearms import ServeArm

HERE = Path(__file__).parent
#: Lines of a failed arm's output that are shown.
SHOWN = 25


def run(
    arm: Arm | ServeArm,
    *,
    timeout_s: float,
    memory_limit: int | None = None,
    pin: bool = False,
    script: str = "arm.py",
    heard: bool = False,
) -> dict[str, Any]:
    """The arm's result: `status` is `ok`, or what happened instead; the other keys are there when it is `ok`.

    memory_limit: bytes that the arm's GPU, or without one all its processes, may hold.
    pin: one core for each process that trains. heard: what the child says goes to stderr as it comes.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        given, result, log = (Path(name) / file for file in ("arm.json", "result.json", "log.txt"))
        given.write_text(json.dumps({**asdict(arm), "memory_limit": memory_limit}))
        command = [sys.executable, str(HERE / script), str(given), str(result)]
        cores = set(sorted(os.sched_getaffinity(0))[: arm.workers]) if pin else None
        with log.open("w") as out:
            child = subprocess.Popen(
                command,
                stdout=out,
                stderr=None if heard else subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,
            )
            if cores:
                os.sched_setaffinity(child.pid, cores)
            try:
                child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                return {"status": f"timeout after {timeout_s:g} s"}
            finally:
                _end(child)
        if result.is_file():
            found: dict[str, Any] = json.loads(result.read_text())
        elif child.returncode == -signal.SIGKILL:
            found = {"status": "out of memory (killed by the system)"}
        else:
            found = {"status": f"failed: exit code {child.returncode}"}
        if found["status"] != "ok":
            print(*log.read_text(errors="replace").splitlines()[-SHOWN:], sep="\n", file=sys.stderr)
        return found


def _environment() -> dict[str, str]:
    # One thread a process, so that one and two workers, and the plain loop, have the same each.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    # The repository first: beside this file a script `serve.py` would hide the package `serve`.
    paths = os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **threads, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def _end(child: subprocess.Popen[bytes]) -> None:
    """Nothing of the arm is left: a clean end first, for the Ray processes that it may have started."""
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(15)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
