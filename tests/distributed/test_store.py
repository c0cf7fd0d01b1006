"""A run whose storage is a store behind a URL: killed, it goes on from an empty scratch, to the same bits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.train import Checkpoint

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.distributed.ray_checkpoint import resolve
from sdxl_ray.distributed.train import launch
from sdxl_ray.distributed.worker import _run_folder
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.collectives import SingleProcess
from sdxl_ray.io.search_records import read_trials
from sdxl_ray.io.storage import Storage
from tests.bucket import Bucket, bucket
from tests.distributed.conftest import LORA, examples, losses, words
from tests.nodes import stop, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

PLANTED = Path(__file__).parents[1] / "search" / "planted.yaml"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with bucket(monkeypatch) as running:
        yield running


def _killed_and_resumed(recipe: Recipe, served: Bucket, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train by the command line, SIGKILL it after the first checkpoint, go on with another scratch; what is kept."""
    command = [sys.executable, "-m", "sdxl_ray", "train", "tiny_dreambooth_lora", *words(recipe), "--name", "run"]
    command += ["--storage", served.url("runs")]
    first = "runs/run/checkpoints/step-0000005"
    environment = {**os.environ, "SDXL_RAY_SCRATCH": str(folder / "first")}
    driver = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    try:
        came = lambda: f"{first}/manifest.json" in served.names() or driver.poll() is not None  # noqa: E731
        wait_for("a checkpoint", came, 400)
    finally:
        stop(driver)
    there = set(served.names())
    assert "runs/run/summary.json" not in there
    assert {f"{first}/state-{rank:05d}.safetensors" for rank in range(recipe.parallel.workers[1])} <= there
    shutil.rmtree(folder / "first")

    environment["SDXL_RAY_SCRATCH"] = str(folder / "second")
    again = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "run       s3://bucket/runs/run\n" in again.stdout
    assert not (folder / "runs").exists()

    monkeypatch.setenv("SDXL_RAY_SCRATCH", str(folder / "third"))
    elsewhere = Storage.of(served.url("runs"))
    elsewhere.get_folder(elsewhere.root / "run")
    return elsewhere.root / "run"


def _same(fetched: Path, calm: Path) -> None:
    assert losses(fetched) == losses(calm)
    assert examples(fetched) == examples(calm)
    ours, theirs = (Artifact.open(folder / "artifact").manifest.files for folder in (fetched, calm))
    assert ours == theirs


def test_one_process_is_killed_and_goes_on_from_a_store(
    served: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = override(LORA, {"parallel.engine": "local", "parallel.workers": 1})
    calm = launch(alone, storage=tmp_path / "calm", name="run").folder
    _same(_killed_and_resumed(alone, served, tmp_path, monkeypatch), calm)


@pytest.mark.exhaustive  # a host that is cut off goes on from a store too
def test_two_workers_are_killed_and_go_on_from_a_store(
    served: Bucket, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _same(_killed_and_resumed(LORA, served, tmp_path, monkeypatch), undisturbed)
    storage = Storage.of(served.url("runs"))
    files, root = storage.filesystem()
    seen = [name for name in served.names() if name.startswith("runs/run/ray/") and name.endswith("/checkpoint.json")]
    newest = max(seen, key=lambda name: name.rpartition("/step-")[2]).removesuffix("/checkpoint.json")
    found = resolve(Checkpoint(f"{root}/{newest.removeprefix('runs/')}", filesystem=files), storage)
    assert found.name == "step-0000020" and found.is_relative_to(storage.root)


def test_a_trials_folder_is_found_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run of a trial lies in its search's folder."""
    monkeypatch.setenv("SDXL_RAY_SCRATCH", str(tmp_path / "driver"))
    here = Storage.of("memory://trials")
    folder = here.root / "s" / "trial-000"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    here.put_folder(folder)
    monkeypatch.setenv("SDXL_RAY_SCRATCH", str(tmp_path / "worker"))
    there = Storage.of("memory://trials")
    config = {"name": "s/trial-000", "folder": str(folder), "cache": str(here.root / "cache")}
    run = _run_folder(config, SingleProcess(), there)
    assert run.folder == there.root / "s" / "trial-000" != folder
    assert (run.folder / "run.json").read_text() == "{}"


@pytest.mark.exhaustive  # a killed search goes on, and so does a run whose storage is a store: two tests in CI
@pytest.mark.parametrize("engine", ["local", "zero"])
def test_a_search_goes_on_from_a_store(
    engine: str, served: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first machine is gone: the two trials that ended there are not run again, and the winner is fetched."""
    command = [sys.executable, "-m", "sdxl_ray", "tune", str(PLANTED), "--name", "s", "--storage", served.url("runs")]
    command.append(f"parallel.engine={engine}")
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    for scratch, trials, more in (("first", 2, ()), ("second", 3, ("--resume",))):
        environment["SDXL_RAY_SCRATCH"] = str(tmp_path / scratch)
        asked = [*command, f"budget.trials={trials}", *more]
        done = subprocess.run(asked, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    names = served.names("runs/s/")
    assert {"runs/s/search.json", "runs/s/best.yaml", "runs/s/trial-000/artifact/manifest.json"} <= set(names)
    assert not any("/checkpoints/" in name for name in names)
    assert not any(name.startswith("runs/s/ray/") for name in names)  # Ray Tune's; a trial's own is Ray Train's

    monkeypatch.setenv("SDXL_RAY_SCRATCH", str(tmp_path / "third"))
    elsewhere = Storage.of(served.url("runs"))
    elsewhere.get_folder(elsewhere.root / "s")
    trials = read_trials(elsewhere.root / "s")
    assert [trial.number for trial in trials] == [0, 1, 2]
    first = [path for path in (tmp_path / "second").rglob("trial-*") if path.is_dir()]
    assert [path.name for path in first] == ["trial-002"], "an ended trial was run again"
