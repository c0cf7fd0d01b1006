"""A checkpoint of Ray Train's leads to ours: the files that the loader verifies, or one line that says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
from ray.train import Checkpoint

from sdxl_ray.distributed.ray_checkpoint import POINTER, CheckpointPointer, resolve
from sdxl_ray.errors import UserError
from sdxl_ray.io.collectives import SingleProcess
from sdxl_ray.io.storage import Storage
from sdxl_ray.training.checkpoint import CheckpointStore

RUN = "search/trial-000"  # the run of a trial lies in its search's folder


def saved(storage: Storage, step: int, text: str = "x", keep: int = 9) -> Checkpoint:
    """A checkpoint of ours, and what Ray Train has of it."""
    folder = storage.root / RUN / "checkpoints"

    def write(partial: Path) -> list[Path]:
        (partial / "state.txt").write_text(text)
        return [partial / "state.txt"]

    store = CheckpointStore(folder, SingleProcess(), keep=keep, keep_best=False, storage=storage)
    digest = store.save(step, {"best_step": None}, write)
    files, root = storage.filesystem()
    seen = f"{root}/{RUN}/ray/experiment/step-{step}"
    CheckpointPointer.of(storage, RUN, step, digest).write(files, seen)
    return Checkpoint(seen, filesystem=files)


def test_a_pointer_leads_to_our_folder(tmp_path: Path) -> None:
    storage = Storage.of(tmp_path / "runs")
    found = {step: resolve(saved(storage, step, f"of {step}")) for step in (5, 10)}
    checkpoints = tmp_path / "runs" / RUN / "checkpoints"
    assert found == {5: checkpoints / "step-0000005", 10: checkpoints / "step-0000010"}
    assert (found[5] / "state.txt").read_text() == "of 5"


def test_a_store_of_a_url_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDXL_RAY_SCRATCH", str(tmp_path / "one"))
    storage = Storage.of(f"memory://{tmp_path.name}")
    checkpoint = saved(storage, 5)
    plain = json.loads(checkpoint.filesystem.open_input_stream(f"{checkpoint.path}/{POINTER}").read())
    assert plain["checkpoint"] == f"memory://{tmp_path.name}/{RUN}/checkpoints/step-0000005"
    monkeypatch.setenv("SDXL_RAY_SCRATCH", str(tmp_path / "two"))
    found = resolve(checkpoint)
    assert found.is_relative_to(tmp_path / "two") and (found / "state.txt").read_text() == "x"


def test_options_of_a_url_are_not_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDXL_RAY_SCRATCH", str(tmp_path))
    storage = Storage(tmp_path, "s3://bucket/runs?endpoint_override=host:1&session_token=secret")
    assert CheckpointPointer.of(storage, "dog", 5, "0").checkpoint == "s3://bucket/runs/dog/checkpoints/step-0000005"


def test_runs_that_were_moved_are_found_where_they_are_now(tmp_path: Path) -> None:
    before = Storage.of(tmp_path / "before")
    checkpoint = saved(before, 5)
    shutil.move(before.root, tmp_path / "after")
    checkpoint = Checkpoint(checkpoint.path.replace("/before/", "/after/"), filesystem=checkpoint.filesystem)
    with pytest.raises(UserError, match="gone or damaged"):
        resolve(checkpoint)
    assert resolve(checkpoint, tmp_path / "after") == tmp_path / "after" / RUN / "checkpoints" / "step-0000005"


def test_one_that_the_run_has_removed_is_named(tmp_path: Path) -> None:
    storage = Storage.of(tmp_path)
    first = saved(storage, 5)
    saved(storage, 10, keep=1)
    with pytest.raises(UserError, match=r"step-0000005' is gone or damaged: .*checkpoint\.keep") as gone:
        resolve(first)
    assert "\n" not in str(gone.value)


def test_one_that_was_altered_is_refused(tmp_path: Path) -> None:
    checkpoint = saved(Storage.of(tmp_path), 5)
    (tmp_path / RUN / "checkpoints" / "step-0000005" / "state.txt").write_text("y")
    with pytest.raises(UserError, match="gone or damaged"):
        resolve(checkpoint)


def test_one_that_was_written_again_is_another_one(tmp_path: Path) -> None:
    storage = Storage.of(tmp_path)
    first = saved(storage, 5, "x")
    (Path(first.path) / POINTER).rename(tmp_path / POINTER)
    again = saved(storage, 5, "y")
    assert resolve(again)
    (tmp_path / POINTER).rename(Path(first.path) / POINTER)
    with pytest.raises(UserError, match="was written again"):
        resolve(first)


@pytest.mark.parametrize(
    ("plain", "says"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ({"uri": "s3://elsewhere"}, "names no checkpoint"),
        (["x"], "names no checkpoint"),
        ({"format": 2, "checkpoint": "x", "run": "a", "step": 5, "sha256": ""}, "format 2, this version reads 1"),
        ({"format": 1, "checkpoint": "x", "run": "../../etc", "step": 5, "sha256": ""}, r"'\.\.'"),
        ({"format": 1, "checkpoint": "x", "run": "a", "step": "5", "sha256": ""}, "names no checkpoint"),
    ],
)
def test_what_is_no_pointer_of_ours_is_refused_in_one_line(tmp_path: Path, plain: Any, says: str) -> None:
    if plain is not None:
        (tmp_path / POINTER).write_text(plain if isinstance(plain, str) else json.dumps(plain))
    with pytest.raises(UserError, match=says) as refused:
        resolve(Checkpoint(str(tmp_path), filesystem=pafs.LocalFileSystem()))
    assert "\n" not in str(refused.value)
