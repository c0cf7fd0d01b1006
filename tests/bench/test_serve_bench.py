"""The serving benchmark runs in every part, and its rows are of the same work: speed itself is never tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "serve.py"
SMALL = ("--steps", "2", "--singles", "1", "--images", "4", "--rounds", "1", "--queries", "4", "--rank", "4")


def bench(*words: str | Path, folder: Path) -> tuple[str, dict[str, Any]]:
    """What the script prints, and what it writes."""
    target = folder / "rows.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, *SMALL, *words, "--json", target],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(target.read_text())


@pytest.mark.exhaustive  # a minute; run it before a GPU is rented
@pytest.mark.slow
def test_the_figures_of_a_gpu_come_from_code_that_runs_here(tmp_path: Path) -> None:
    text, found = bench("--shape", "tiny", "--gpu-like", folder=tmp_path)
    rows = {row["label"]: row for row in found["rows"]}
    assert len(rows) == 10 and all(row["ours"] > 0 for row in rows.values())
    compared = [row for row in rows.values() if row["eager"] is not None]
    assert len(compared) == 4
    many = rows["images/s, many, 2 steps"]
    assert many["ratio"] == pytest.approx(many["ours"] / many["eager"])
    assert rows["s, p99 of 4 at 0.96 x that rate; x answered"]["ratio"] == 1
    decode = rows["ms, VAE decode"]
    assert decode["ratio"] == pytest.approx(decode["eager"] / decode["ours"])
    for heading in ("eager diffusers", "ours", "ratio", "machine:", "date:", "command:", "cached_prompts=0"):
        assert heading in text


@pytest.mark.exhaustive
def test_every_system_draws_the_same_and_stands_beside_its_goal(tmp_path: Path) -> None:
    text, found = bench(folder=tmp_path)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["pipeline", "engine", "recipe", "base", "lora", "fused", "mixed"]
    assert all(row["rate"] > 0 for row in rows.values())
    assert all(row["p50_ms"] > 0 for name, row in rows.items() if name != "mixed")
    assert rows["engine"]["x_engine"] == 1 and rows["pipeline"]["over_ms"] == 0
    assert [row["n"] for row in found["mixed"]] == [4, 4] and found["mixed_rate"] > 0
    for goal in ("goal <= 10", "goal >= 0.97", "goal <= 0.60", "goal <= 1.01", "goal <= 1.05", "goal <= 1.10"):
        assert goal in text


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--shape", "xl"], ["--queries", "many"]])
def test_wrong_words_are_refused_before_anything_runs(words: list[str]) -> None:
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert words[1] in done.stderr
    assert "Traceback" not in done.stderr
