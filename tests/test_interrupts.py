"""Ctrl-C as a terminal sends it: to the whole process group; SIGTERM as a job runner sends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

RUN = (
    "train", "tiny_lora", "data.images=subject:robot", "data.subject=sks robot", "data.resolution=32",
    "optim.warmup_steps=0", "evaluation.every=0", "evaluation.num_inference_steps=1", "evaluation.draws=1",
)  # fmt: skip


@contextmanager
def started(folder: Path, *words: str, until: str) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, as a shell starts it, that has printed `until`."""
    with subprocess.Popen(
        [sys.executable, "-m", "sdxl_ray", *words], cwd=folder, text=True, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stderr is not None
        try:
            seen = []
            for line in child.stderr:
                seen.append(line)
                if until in line:
                    break
            else:
                pytest.fail("".join(seen))
            yield child
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)


def ended(child: subprocess.Popen[str], signum: int) -> tuple[int, str]:
    """Exit code and what was printed after the signal; every process that it had started is gone by then."""
    started_by_it = psutil.Process(child.pid).children(recursive=True)
    os.killpg(child.pid, signum)
    sent = time.monotonic()
    assert child.stderr is not None
    said = child.stderr.read()
    code = child.wait(60)
    _, left = psutil.wait_procs(started_by_it, timeout=max(0.0, 30 - (time.monotonic() - sent)))
    assert not left
    return code, said


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.exhaustive)],
)
@pytest.mark.slow
def test_a_run_of_this_process_ends_with_one_line(tmp_path: Path, signum: int, code: int) -> None:
    words = (
        *RUN,
        "parallel.engine=local",
        "parallel.workers=1",
        "checkpoint.every=2",
        "optim.steps=100000",
        "--name",
        "cut",
    )
    with started(tmp_path, *words, until="checkpoint written") as child:
        found, said = ended(child, signum)
    lines = [line for line in said.splitlines() if "interrupted" in line]
    assert (found, len(lines)) == (code, 1), said
    assert f"{tmp_path}/runs/cut keeps the checkpoint of step" in lines[0]
    assert "the same command resumes it" in lines[0]
    assert "Traceback" not in said


@pytest.mark.slow
def test_workers_of_ray_end_with_the_command(tmp_path: Path) -> None:
    words = (*RUN, "parallel.workers=1", "optim.steps=100000", "--name", "cut")
    with started(tmp_path, *words, until="training 1/") as child:
        assert len(psutil.Process(child.pid).children(recursive=True)) > 3
        code, said = ended(child, signal.SIGINT)
    assert code == 130, said
    assert said.count("interrupted:") == 1 and "Traceback" not in said


@pytest.mark.slow
def test_an_endpoint_ends_with_the_exit_code_of_sigterm(tmp_path: Path) -> None:
    """Ray installs a handler of its own, which would exit with 15."""
    with started(tmp_path, "serve", "port=0", until="loading the variants") as child:
        code, said = ended(child, signal.SIGTERM)
    assert code == 143, said
    assert said.count("interrupted: taking the endpoint down") == 1 and "Traceback" not in said


def test_a_second_one_ends_a_command_that_hangs(tmp_path: Path) -> None:
    """What takes the command down hangs; the second signal does not wait for it."""
    code = (
        "import time\n"
        "from sdxl_ray.interrupts import handled\n"
        "with handled():\n"
        "    try:\n"
        "        print('ready', flush=True); time.sleep(60)\n"
        "    finally:\n"
        "        print('hanging', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        try:
            for line in ("ready", "hanging"):
                assert child.stdout.readline().strip() == line
                child.send_signal(signal.SIGINT)
            assert child.wait(20) == 130
        finally:
            child.kill()
