"""A full disk or lost object storage ends a run within a minute, in one line; the same command resumes it (R7)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.distributed.train import launch
from sdxl_ray.errors import RunError
from sdxl_ray.io.storage import Storage
from tests.bucket import bucket
from tests.disks import small_disk
from tests.distributed.conftest import quick
from tests.io.storage.silent import Faulty, faulty

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

ENGINES = ["local", pytest.param("zero", marks=pytest.mark.exhaustive)]


def _recipe(engine: str) -> Recipe:
    return quick("tiny_lora", parallel__engine=engine, parallel__workers=1 if engine == "local" else 2, optim__steps=60)


def _at_a_checkpoint(what: Callable[[], object]) -> tuple[Callable[[dict[str, Any]], None], list[float]]:
    """An `on_row` that does `what` once, when the first checkpoint is there; and when it did."""
    done: list[float] = []

    def on_row(row: dict[str, Any]) -> None:
        if row["kind"] == "checkpoint" and not done:
            what()
            done.append(time.monotonic())

    return on_row, done


def _goes_on(recipe: Recipe, storage: str | Path) -> None:
    rows: list[dict[str, Any]] = []
    result = launch(recipe, storage=storage, name="run", on_row=rows.append)
    assert next(row["step"] for row in rows if row["kind"] == "resume") >= 5
    assert result.summary["steps"] == recipe.optim.steps


@pytest.mark.parametrize("engine", ENGINES)
def test_a_disk_that_fills_up(engine: str, ray_cluster: None, tmp_path: Path) -> None:
    recipe = _recipe(engine)
    with small_disk(tmp_path / "disk", 64) as disk:
        filler = disk / "filler"

        def fill() -> None:
            with filler.open("wb") as file, pytest.raises(OSError, match="No space"):
                while True:
                    file.write(bytes(2**16))
                    file.flush()

        on_row, done = _at_a_checkpoint(fill)
        with pytest.raises(RunError, match=r"cannot be written: .*No space left on device") as failed:
            launch(recipe, storage=disk, name="run", on_row=on_row)
        assert time.monotonic() - done[0] < 60
        assert "\n" not in str(failed.value)
        filler.unlink()
        _goes_on(recipe, disk)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_store_that_answers_no_more(engine: str, ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _recipe(engine)
    if engine == "local":  # that it ends: how soon, as shipped, is for the other one to say
        monkeypatch.setattr("sdxl_ray.io.storage.deadline._PATIENCE_S", 3.0)
        monkeypatch.setattr("sdxl_ray.io.storage.filesystems._ANSWER_S", 2)
    with bucket(monkeypatch) as served, ExitStack() as stack:
        url = served.whole_url("lost")
        stack.callback(shutil.rmtree, Storage.of(url).root, ignore_errors=True)  # the scratch, the workers' too
        with ExitStack() as hung:
            on_row, done = _at_a_checkpoint(lambda: hung.enter_context(served.hung()))
            with pytest.raises(RunError, match=r"'s3://bucket/lost'") as failed:
                launch(recipe, storage=url, name="run", on_row=on_row)
            assert time.monotonic() - done[0] < 60
            assert "\n" not in str(failed.value)
        _goes_on(recipe, url)


def test_a_store_of_any_kind_that_stalls_ends_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One without time limits of its own: the call is still blocked when the run has ended."""
    monkeypatch.setenv("SDXL_RAY_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr("sdxl_ray.io.storage.deadline._BLOCK_S", 2.0)
    recipe = _recipe("local")
    with faulty(tmp_path / "store") as url:
        on_row, done = _at_a_checkpoint(Faulty.stalled.set)
        with pytest.raises(RunError, match=r"could not be sent to 'faulty://.*no answer in 2 s") as failed:
            launch(recipe, storage=url, name="run", on_row=on_row)
        assert time.monotonic() - done[0] < 20
        assert "\n" not in str(failed.value)
        Faulty.stalled.clear()
        _goes_on(recipe, url)
