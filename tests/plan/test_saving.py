"""What checkpoints take: disk, memory, seconds; and the refusal before a disk is full."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest

from sdxl_ray.cli import disk
from sdxl_ray.cli.disk import require_room
from sdxl_ray.errors import UserError
from sdxl_ray.plan import CPU, Plan
from tests.conftest import Here
from tests.plan.known import UNET, WHOLE, plain, recipe

Usage = namedtuple("Usage", "free")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes free on every disk; a test changes the one number."""
    found = [0]
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: Usage(found[0]))
    return found


def test_full_tuning_keeps_four_checkpoints_and_an_artifact() -> None:
    saved = Plan.of(plain("dreambooth"), "h200").saving
    assert saved.checkpoint_bytes == saved.host_bytes == 12 * UNET  # fp32 weights and two moments: 30.8 GB
    assert saved.checkpoints == 4  # two, the best, and the one that is being written
    assert saved.disk_bytes == 48 * UNET + 2 * WHOLE
    assert saved.hash_seconds == pytest.approx(27, abs=0.5)
    assert saved.seconds[0] > saved.written * saved.hash_seconds
    two = Plan.of(plain("dreambooth", parallel__workers=2), "h200").saving
    assert two.host_bytes == pytest.approx(saved.host_bytes / 2, abs=1)
    averaged = Plan.of(plain("dreambooth", optim__ema_decay=0.99), "h200").saving
    assert averaged.checkpoint_bytes == 16 * UNET
    once = Plan.of(plain("dreambooth", optim__steps=50, evaluation__scores="never"), "h200").saving
    assert once.checkpoints == once.written == 1


def test_on_a_cpu_a_checkpoint_is_copied_beside_the_training() -> None:
    phase = Plan.of(plain("dreambooth"), CPU).memory.phase("checkpoint")
    assert phase.parts["workspace"] == 12 * UNET


def test_the_plan_shows_what_is_saved() -> None:
    plan = Plan.of(plain("dreambooth"), "h200")
    assert "disk: 130 GB (4 checkpoints of 30.8 GB and the artifact)" in plan.text()
    assert "28.7 GiB of CPU memory on the worker while it is written, and 27 s to hash" in plan.text()
    assert plan.plain()["saving"]["disk_bytes"] == plan.saving.disk_bytes
    assert plan.duration.phases_s["checkpoints and artifact"] == plan.saving.seconds


def test_what_the_disk_has_no_room_for_is_refused(here: Here, free: list[int], tmp_path: Path) -> None:
    words = ("plan", "dreambooth", "--gpu", "h200", "--workers", "1")
    free[0] = 80 * 10**9
    code, _, err = here(*words, "--storage", str(tmp_path / "runs"))
    assert code == 2
    assert "4 checkpoints of 30.8 GB and the artifact need 130 GB in" in err
    assert "which has 80 GB free: add checkpoint.keep=1 checkpoint.keep_best=false evaluation.scores=never (68.6" in err
    fewer = ("checkpoint.keep=1", "checkpoint.keep_best=false", "evaluation.scores=never")
    assert here(*words, *fewer, "--storage", str(tmp_path / "runs"))[0] == 0
    assert here(*words)[0] == 0  # a plan for another machine
    free[0] = 10**9
    assert "GB free: give --storage on a larger disk" in here(*words, "--storage", str(tmp_path / "runs"))[2]


def test_train_refuses_before_it_starts(here: Here, free: list[int], tmp_path: Path) -> None:
    words = ("train", "tiny_dreambooth", "data.images=subject:robot", "data.subject=sks robot", "data.class_name=robot")
    free[0] = 10**6
    code, _, err = here(*words, "parallel.engine=local", "parallel.workers=1", "--name", "dog")
    assert code == 2, err
    assert "and the artifact need" in err
    assert not (tmp_path / "runs" / "dog").exists()


def test_what_a_run_has_written_is_room_for_it(free: list[int], tmp_path: Path) -> None:
    saved = Plan.of(recipe("tiny_lora"), CPU).saving
    free[0] = saved.disk_bytes - 1000
    with pytest.raises(UserError, match="and the artifact need"):
        require_room(saved, tmp_path, tmp_path / "dog")
    (tmp_path / "dog" / "checkpoints" / "step-1").mkdir(parents=True)
    (tmp_path / "dog" / "checkpoints" / "step-1" / "state").write_bytes(bytes(1000))
    require_room(saved, tmp_path, tmp_path / "dog")
    free[0] = 0
    (tmp_path / "dog" / "summary.json").write_text("{}")
    require_room(saved, tmp_path, tmp_path / "dog")
