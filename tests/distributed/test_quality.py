"""Two workers under ZeRO-3 score as one process does, choose the same step, and leave its artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdxl_ray.artifact import Artifact
from sdxl_ray.distributed.train import launch
from sdxl_ray.records import read
from tests.distributed.conftest import losses, quick

pytestmark = pytest.mark.slow

#: So small a rate that nothing is learnt: which look is best is up to the last bit, and none ends the run.
STILL: dict[str, Any] = {
    "optim__lr": 1e-12,
    "optim__steps": 4,
    "optim__ema": 0.9,
    "optim__schedule": "constant",
    "optim__warmup_steps": 0,
    "checkpoint__every": 50,
    "evaluation__every": 2,
    "evaluation__num_inference_steps": 2,
    "evaluation__guidance_scale": 4.0,
    "evaluation__patience": 0,
    "evaluation__class_pictures": 2,
}


def scores(folder: Path) -> dict[tuple[int, str, str], float]:
    rows = read(folder / "records", "scores").to_pylist()
    return {(row["step"], row["model"], row["metric"]): row["value"] for row in rows}


def test_two_workers_score_choose_and_export_as_one_does(ray_cluster: None, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    recipe = quick("tiny_lora", parallel__workers=2, parallel__zero_stage=3, **STILL)
    both = launch(recipe, storage=tmp_path / "two", name="run", on_row=rows.append)
    summary = both.summary
    assert (summary["steps"], summary["stopped_early"]) == (4, False)
    assert Artifact.open(both.artifact).manifest.step == summary["best_step"] > 0
    assert len(losses(both.folder)) == 4
    told = [row for row in rows if row["kind"] == "scores"]
    assert [row["step"] for row in told] == [0, 2, 4] and "rows" not in told[0]
    assert told[-1]["metrics"]["quality"] == scores(both.folder)[4, "run", "quality"]

    alone = launch(
        quick("tiny_lora", parallel__workers=1, parallel__engine="local", **STILL), storage=tmp_path / "one", name="run"
    )
    assert not alone.summary["stopped_early"]
    mine, other = scores(both.folder), scores(alone.folder)
    assert mine.keys() == other.keys()
    assert {key: pytest.approx(value, abs=1e-4) for key, value in other.items()} == mine

    rows.clear()
    again = launch(recipe, storage=tmp_path / "two", name="run", on_row=rows.append)
    assert again.summary == summary
    assert [row["text"] for row in rows if row["kind"] == "note"] == ["this run has ended: nothing is left to train"]
    assert not [row for row in rows if row["kind"] == "step"]
