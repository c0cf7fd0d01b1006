"""Checkpoints: whole or not there, named when damaged, and never a way to run code."""

from __future__ import annotations

import json
import logging
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.config.schema import LoraTuning, Optim
from sdxl_ray.errors import RunError, UserError
from sdxl_ray.io.collectives import Collectives, SingleProcess
from sdxl_ray.io.file_hash import sha256
from sdxl_ray.models.adapters import TUNINGS, denoiser_of
from sdxl_ray.models.base_model import Components
from sdxl_ray.training.checkpoint import CheckpointStore
from sdxl_ray.training.checkpoint_backends import own_hash
from sdxl_ray.training.ema import Ema
from sdxl_ray.training.engine import LocalEngine
from sdxl_ray.training.state import read_state, write_state
from tests.running import Threads, Train, on_ranks

FILES = ("manifest.json", "rest-00000.pt", "state-00000.safetensors")


def store(folder: Path, group: Collectives | None = None, keep: int = 2, keep_best: bool = False) -> CheckpointStore:
    return CheckpointStore(folder, group or SingleProcess(), keep=keep, keep_best=keep_best)


def words(text: str, name: str = "a.txt") -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        (folder / name).write_text(text)
        return [folder / name]

    return write


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def engine(components: Components) -> LocalEngine:
    tuning = LoraTuning(rank=1, target_modules=("to_q",))
    denoiser = denoiser_of(components, tuning)
    held = TUNINGS[LoraTuning].prepare(denoiser, tuning, 0)
    made = LocalEngine(denoiser, held, Optim(), accumulation=1, device=torch.device("cpu"), precision=torch.float32)
    for _ in range(2):
        made.backward(sum((p.square().sum() for _, p in held.named), torch.zeros(())))
        made.step()
    return made


def test_the_newest_are_kept_and_the_best(tmp_path: Path) -> None:
    assert store(tmp_path).latest() is None
    for step in range(1, 6):
        store(tmp_path, keep_best=True).save(step, {"best_step": 1 if step < 4 else 3}, words(str(step)))
    assert names(tmp_path) == ["step-0000003", "step-0000004", "step-0000005"]
    found = store(tmp_path).latest()
    assert found is not None
    assert (found.step, found.world, found.meta) == (5, 1, {"best_step": 3})
    assert [path.read_text() for path in found.files] == ["5"]


def test_what_a_killed_saver_left_is_removed(tmp_path: Path) -> None:
    store(tmp_path).save(1, {}, words("one"))
    (tmp_path / "step-0000002.partial").mkdir()
    (tmp_path / "step-0000002.partial" / "a.txt").write_text("half")
    found = store(tmp_path).latest()
    assert found is not None
    assert found.step == 1
    store(tmp_path).clean()
    assert names(tmp_path) == ["step-0000001"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "link"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, engine: LocalEngine, caplog: pytest.LogCaptureFixture, file: str, harm: str
) -> None:
    for step in (1, 2):
        store(tmp_path).save(step, {}, lambda folder: write_state(engine, None, folder))
    assert names(tmp_path / "step-0000002") == list(FILES)
    path = tmp_path / "step-0000002" / file
    data = path.read_bytes()
    path.unlink()
    if harm == "flip":
        at = len(data) // 2
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    elif harm == "cut":
        path.write_bytes(data[:-1])
    elif harm == "link":
        path.symlink_to(tmp_path / "step-0000001" / file)
    with caplog.at_level(logging.WARNING):
        found = store(tmp_path).latest()
    assert found is not None
    assert found.step == 1
    assert "checkpoint step-0000002 is damaged" in caplog.text
    assert file in caplog.text


def test_every_number_of_the_manifest_is_guarded(tmp_path: Path) -> None:
    store(tmp_path).save(7, {"best_loss": 0.25}, words("x"))
    path = tmp_path / "step-0000007" / "manifest.json"
    whole = json.loads(path.read_text())
    for change in ({"step": 8}, {"world": 2}, {"meta": {"best_loss": 0.5}}, {"format": 2}):
        path.write_text(json.dumps({**whole, **change}))
        assert store(tmp_path).latest() is None
    path.write_text(json.dumps(whole))
    assert store(tmp_path).latest() is not None
    (tmp_path / "step-0000007").rename(tmp_path / "step-0000009")
    assert store(tmp_path).latest() is None


def test_a_damaged_later_checkpoint_does_not_push_out_the_good_ones(tmp_path: Path) -> None:
    for step in (3, 9):
        store(tmp_path).save(step, {}, words("x"))
    (tmp_path / "step-0000009" / "a.txt").write_text("y")
    store(tmp_path, keep=1).save(5, {}, words("x"))
    found = store(tmp_path).latest()
    assert found is not None
    assert found.step == 5


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
@pytest.mark.parametrize("file", FILES)
def test_a_full_disk_ends_the_run_with_the_earlier_checkpoints_intact(
    tmp_path: Path, engine: LocalEngine, file: str
) -> None:
    store(tmp_path).save(1, {}, lambda folder: write_state(engine, None, folder))

    def write(folder: Path) -> list[Path]:
        if file.endswith(".safetensors"):  # that library does not write through a link: let the file be too large
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        else:
            (folder / file).symlink_to("/dev/full")
        return write_state(engine, None, folder)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    reason = "File too large" if file.endswith(".safetensors") else "No space left"
    message = rf"checkpoint of step 2 could not be written: .*{reason}.*; earlier checkpoints are intact"
    try:
        with pytest.raises(RunError, match=message):
            store(tmp_path).save(2, {}, write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["step-0000001"]
    assert store(tmp_path).latest() is not None


def test_several_ranks_save_together_or_not_at_all(tmp_path: Path) -> None:
    def save(group: Threads) -> Any:
        store(tmp_path, group).save(1, {}, words(str(group.rank), f"{group.rank}.txt"))
        return store(tmp_path, group).latest()

    found = on_ranks(3, save)
    assert [(info.step, info.world, len(info.files)) for info in found] == [(1, 3, 3)] * 3

    def fail(group: Threads) -> None:
        def write(folder: Path) -> list[Path]:
            if group.rank == 1:
                raise OSError(28, "No space left on device")
            return words("x", f"{group.rank}.txt")(folder)

        store(tmp_path, group).save(2, {}, write)

    assert [type(outcome) for outcome in on_ranks(3, fail)] == [RunError] * 3
    assert names(tmp_path) == ["step-0000001"]


def test_a_state_comes_back_bit_for_bit(tmp_path: Path, engine: LocalEngine, tiny: Components) -> None:
    ema = Ema(engine, 0.9)
    ema.averages[0].add_(1)
    store(tmp_path).save(2, {}, lambda folder: write_state(engine, ema, folder))
    before = [{k: v.clone() for k, v in engine.state(p).items()} for _, p in engine.trainable.named]
    averages = [a.clone() for a in ema.averages]
    assert before[0].keys() == {"weight", "exp_avg", "exp_avg_sq"}
    for _, p in engine.trainable.named:
        engine.load(p, {kind: torch.full_like(v, 7) for kind, v in engine.state(p).items()})
    ema.averages[0].zero_()
    found = store(tmp_path).latest()
    assert found is not None
    read_state(engine, ema, found)
    for (_, p), kept in zip(engine.trainable.named, before, strict=True):
        state = engine.state(p)
        assert all(torch.equal(state[kind], kept[kind]) for kind in kept)
    assert all(torch.equal(a, b) for a, b in zip(ema.averages, averages, strict=True))
    assert engine.opaque_state()["optimizer"] == {"step": 2.0}


def forge(folder: Path, payload: bytes) -> None:
    """Put `payload` where the counters are, with a manifest that vouches for it."""
    (folder / "rest-00000.pt").write_bytes(payload)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["rest-00000.pt"] = sha256(folder / "rest-00000.pt")
    del manifest["sha256"]
    manifest["sha256"] = own_hash(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


class Canary:
    """Sings when it is unpickled."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.where,)


def test_a_pickle_never_runs(tmp_path: Path, engine: LocalEngine) -> None:
    store(tmp_path).save(1, {}, lambda folder: write_state(engine, None, folder))
    song = tmp_path / "song"
    payload = pickle.dumps(Canary(song), protocol=2)  # torch's own
    pickle.loads(payload)
    assert song.exists()
    song.unlink()
    forge(tmp_path / "step-0000001", payload)
    found = store(tmp_path).latest()
    assert found is not None
    with pytest.raises(RunError, match="holds more than tensors and numbers"):
        read_state(engine, None, found)
    assert not song.exists()


def test_only_files_that_the_manifest_names_are_opened(tmp_path: Path, engine: LocalEngine) -> None:
    store(tmp_path).save(1, {}, lambda folder: write_state(engine, None, folder)[:1])
    assert (tmp_path / "step-0000001" / "rest-00000.pt").exists()
    found = store(tmp_path).latest()
    assert found is not None
    with pytest.raises(RunError, match=r"does not name rest-00000.pt"):
        read_state(engine, None, found)


def test_a_state_that_cannot_be_cut_for_other_workers_says_so(tmp_path: Path, engine: LocalEngine) -> None:
    def save(group: Threads) -> None:
        def write(folder: Path) -> list[Path]:
            path = folder / f"rest-{group.rank:05d}.pt"
            torch.save({"scaler": {}, "optimizer": {"state": {}, "param_groups": []}}, path)
            return [path]

        store(tmp_path, group).save(1, {}, write)

    assert on_ranks(2, save) == [None, None]
    found = store(tmp_path).latest()
    assert found is not None
    with pytest.raises(UserError, match=r"saved by 2 workers and cannot be cut for 1: set parallel.workers=2"):
        read_state(engine, None, found)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(train: Train, recipe: Recipe) -> None:
    recipe = override(recipe, {"checkpoint.every": 1, "optim.batch_size": 1, "data.holdout": 0})
    straight = train(recipe, "straight")
    train(recipe, "run", kill_at=4)
    folder = straight.folder.parent / "run" / "checkpoints"
    assert names(folder) == ["step-0000002", "step-0000003"]
    path = folder / "step-0000003" / "state-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    again = train(recipe, "run")
    assert again.summary["resumed_at"] == 2
    assert again.losses == {s: straight.losses[s] for s in (3, 4)}
