"""Killed and resumed: SIGKILL of a worker or of the driver leaves no trace in the result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.distributed.train import launch
from sdxl_ray.errors import RunError
from tests.distributed.conftest import LORA, cut_off, examples, losses, processes, same_run, words

pytestmark = [pytest.mark.slow, pytest.mark.shares("cuts"), pytest.mark.chaos]


def _killer(at_step: int) -> Callable[[dict[str, Any]], None]:
    """Kills one training worker when `at_step` is first reported."""
    done = []

    def on_row(row: dict[str, Any]) -> None:
        if row["kind"] == "step" and row["step"] >= at_step and not done:
            done.append(processes("TrainWorker")[-1])
            done[0].send_signal(signal.SIGKILL)

    return on_row


def test_a_killed_worker_leaves_no_trace(undisturbed: Path, tmp_path: Path) -> None:
    resumed: list[int] = []
    kill = _killer(8)

    def on_row(row: dict[str, Any]) -> None:
        kill(row)
        if row["kind"] == "resume":
            resumed.append(row["step"])

    handler = signal.getsignal(signal.SIGINT)
    result = launch(LORA, storage=tmp_path, name="run", on_row=on_row)
    assert signal.getsignal(signal.SIGINT) is handler  # Ray Train leaves one of its own that ignores Ctrl-C
    assert resumed, "nobody was killed"
    assert resumed[0] in (5, 10, 15)  # a checkpoint; where exactly depends on how quick the kill was
    same_run(undisturbed, result.folder)


@pytest.mark.exhaustive  # a killed worker of two, and the killed driver of one process (test_store.py), are run always
def test_a_killed_driver_goes_on_with_the_same_command(undisturbed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sdxl_ray", "train", "tiny_dreambooth_lora", *words(LORA), "--name", "run"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    driver = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "runs" / "run" / "checkpoints" / "step-0000005"
    deadline = time.monotonic() + 300
    while not checkpoint.is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    assert checkpoint.is_dir()
    assert not (tmp_path / "runs" / "run" / "summary.json").exists()
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    same_run(undisturbed, tmp_path / "runs" / "run")


@pytest.mark.exhaustive
def test_two_workers_then_one_then_two(undisturbed: Path, tmp_path: Path) -> None:
    for workers, at_step in ((2, 7), (1, 12)):
        with pytest.raises(RunError, match="run the same command to resume"):
            launch(_with(workers), storage=tmp_path, name="run", on_row=_killer(at_step))
    folder = launch(_with(2), storage=tmp_path, name="run").folder
    assert examples(folder) == examples(undisturbed)
    ours = [float.fromhex(x) for x in losses(folder)]
    assert ours == pytest.approx([float.fromhex(x) for x in losses(undisturbed)], rel=1e-4)


def _with(workers: int) -> Recipe:
    return cut_off(parallel__workers=workers, resources__max_failures=0)
