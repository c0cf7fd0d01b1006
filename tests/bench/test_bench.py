"""The training benchmark runs, and its rows are about the same work: speed itself is never tested."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sdxl_ray.evaluation.subject import photos_of
from sdxl_ray.training.run_directory import scan_images

SCRIPT = Path(__file__).parent / "train.py"


def bench(*words: str | Path, folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """What the script prints, and its rows."""
    target = folder / "rows.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, *words, "--json", target],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(target.read_text())["rows"]


def test_the_photos_that_choose_a_checkpoint_do_not_judge_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    best_last = importlib.import_module("best_last")
    options = argparse.Namespace(steps=40, lr=1e-4, every=5, drawing_steps=1)
    recipe = best_last.recipe_of("robot", 0, options)
    choosing = {photo.pixels for photo in photos_of(scan_images(recipe).held_out)}
    judging = {photo.pixels for photo in best_last.judging_photos(recipe)}
    assert (len(choosing), len(judging)) == (2, 3)
    assert not choosing & judging


@pytest.mark.slow
def test_the_engines_bench_finds_the_package_behind_serve_py() -> None:
    command = [sys.executable, SCRIPT.parent / "serving" / "engine.py", "--help"]
    assert "--batch" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.exhaustive  # two minutes beside other tests; each way of training has quicker tests of its own
@pytest.mark.slow
def test_rows_stand_beside_the_plain_loop_of_the_same_work(tmp_path: Path) -> None:
    names = ["lora/plain", "lora/local-cached", "gpu-like/lora/b1/plain", "gpu-like/lora/b1/zero2"]
    words = ["--rows", *names, "--steps", "2", "--warmup", "1", "--repeats", "1", "--rank", "4"]
    text, rows = bench(*words, folder=tmp_path)
    assert [row["name"] for row in rows] == names
    assert [row["status"] for row in rows] == ["ok"] * 4
    assert len({row["trainable"] for row in rows}) == 1
    assert all(row["finite"] == "yes" and row["samples_per_s"] > 0 and row["peak_bytes"] > 2**20 for row in rows)
    of = {row["name"]: row for row in rows}
    assert of["lora/plain"]["ratio"] == of["gpu-like/lora/b1/plain"]["ratio"] == 1
    expected = of["lora/local-cached"]["samples_per_s"] / of["lora/plain"]["samples_per_s"]
    assert of["lora/local-cached"]["ratio"] == pytest.approx(expected)
    assert of["gpu-like/lora/b1/zero2"]["plan_bytes"] > 2**20
    assert of["gpu-like/lora/b1/zero2"]["floor_share"] > 0
    for heading in ("samples/s", "images/s", "x plain", "of the floor", "plan / peak", "machine:", "date:", "command:"):
        assert heading in text


@pytest.mark.slow
def test_a_row_without_memory_or_time_is_a_row(tmp_path: Path) -> None:
    short = ["--rows", "gpu-like/full/b8/local", "--steps", "1", "--warmup", "0"]
    text, rows = bench(*short, "--memory-limit", "64MiB", folder=tmp_path)
    assert rows[0]["status"] == "out of memory"
    assert "out of memory" in text
    text, rows = bench(*short, "--timeout", "0.5", folder=tmp_path)
    assert rows[0]["status"] == "timeout after 0.5 s"


@pytest.mark.parametrize(
    "words", [["--rows", "gpu-lik"], ["--steps", "0"], ["--memory-limit", "much"], ["--shape", "xl"]]
)
def test_wrong_words_are_refused_before_anything_runs(words: list[str]) -> None:
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert words[1] in done.stderr
    assert "Traceback" not in done.stderr


def test_true_shapes_have_every_option_on_and_off() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--shape", "sdxl", "--list"], capture_output=True, text=True, timeout=300, check=True
    )
    names = done.stdout.split()
    assert len(names) == len(set(names)) == 40
    assert all(name.startswith("gpu-like/") for name in names)
    for tuning in ("lora", "full"):
        for batch in (1, 8):
            for stage in (2, 3):
                for tail in ("", "-checkpointed", "-compiled", "-checkpointed-compiled"):
                    assert f"gpu-like/{tuning}/b{batch}/zero{stage}{tail}" in names


@pytest.mark.exhaustive  # drawing in batches and on workers has quicker tests of its own
@pytest.mark.slow
def test_the_evaluators_rate_stands_beside_one_by_one(tmp_path: Path) -> None:
    script, target = SCRIPT.with_name("evaluate.py"), tmp_path / "rows.json"
    words = ["--images", "8", "--steps", "1", "--workers", "1", "--repeats", "1", "--json", target]
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(target.read_text())["rows"]
    assert [row["way"] for row in rows] == ["one by one", "batches, this process", "batches, 1 Ray worker"]
    assert rows[0]["ratio"] == 1
    assert all(row["rate"] > 0 for row in rows)
    assert "x one by one" in done.stdout
