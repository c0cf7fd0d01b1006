"""A run whose storage is a store behind a URL: killed, it goes on from an empty scratch, to the same bits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdxl_ray.artifact import Artifact
from sdxl_ray.storage import Storage
from tests.bucket import Bucket, bucket
from tests.distributed.conftest import LORA, examples, losses, words

pytestmark = pytest.mark.slow


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with bucket(monkeypatch) as running:
        yield running


def test_killed_and_resumed_from_a_store_on_an_empty_scratch(
    served: Bucket, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "sdxl_ray", "train", "tiny_dreambooth_lora", *words(LORA), "--name", "run"]
    command += ["--storage", served.url("runs")]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "first")}
    driver = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and driver.poll() is None:
        if "runs/run/checkpoints/step-0000005/manifest.json" in served.names():
            break
        time.sleep(0.2)
    driver.kill()
    driver.wait()
    there = served.names()
    assert "runs/run/checkpoints/step-0000005/manifest.json" in there
    assert {f"runs/run/checkpoints/step-0000005/state-0000{rank}.safetensors" for rank in (0, 1)} <= set(there)
    assert "runs/run/summary.json" not in there
    shutil.rmtree(tmp_path / "first")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    again = subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "run       s3://bucket/runs/run\n" in again.stdout
    assert not (tmp_path / "runs").exists()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third"))
    elsewhere = Storage.of(served.url("runs"))
    elsewhere.get_folder(elsewhere.root / "run")
    fetched = elsewhere.root / "run"
    assert losses(fetched) == losses(undisturbed)
    assert examples(fetched) == examples(undisturbed)
    assert Artifact.open(fetched / "artifact").manifest.files == Artifact.open(undisturbed / "artifact").manifest.files
