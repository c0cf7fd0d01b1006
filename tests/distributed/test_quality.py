"""Two workers under ZeRO score as one process does, choose the same step, and leave its artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdxl_ray.config.recipe import override
from sdxl_ray.distributed.train import launch
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.records import read
from tests.distributed.conftest import losses, quick
from tests.distributed.cuts import SCORED, STILL, Cut, trained

pytestmark = [pytest.mark.slow, pytest.mark.shares("cuts"), pytest.mark.chaos]


def scores(folder: Path) -> dict[tuple[int, str, str], float]:
    rows = read(folder / "records", "scores").to_pylist()
    return {(row["step"], row["model"], row["metric"]): row["value"] for row in rows}


def test_two_workers_score_choose_and_export_as_one_does(cuts: dict[str, Cut], tmp_path: Path) -> None:
    _as_one_does(cuts["scored"], tmp_path)


@pytest.mark.exhaustive  # every layer is gathered over gloo for every image
def test_two_workers_under_zero3_score_as_one_does(ray_cluster: None, tmp_path: Path) -> None:
    recipes = {"scored": override(SCORED, {"parallel.zero_stage": 3})}
    _as_one_does(trained(recipes, tmp_path)["scored"], tmp_path)


def _as_one_does(cut: Cut, storage: Path) -> None:
    both, rows = cut.run, cut.rows
    summary = both.summary()
    assert summary is not None
    assert (summary["steps"], summary["stopped_early"]) == (2, False)
    assert Artifact.open(both.artifact).manifest.step == summary["best_step"] > 0
    assert len(losses(both.folder)) == 2
    reported = [row for row in rows if row["kind"] == "scores"]
    assert [row["step"] for row in reported] == [0, 1, 2] and "rows" not in reported[0]
    assert reported[-1]["metrics"]["quality"] == scores(both.folder)[2, "scored", "quality"]

    alone = launch(
        quick("tiny_lora", parallel__workers=1, parallel__engine="local", **STILL),
        storage=storage / "alone",
        name="scored",
    )
    assert not alone.summary["stopped_early"]
    mine, other = scores(both.folder), scores(alone.folder)
    assert mine.keys() == other.keys()
    assert {key: pytest.approx(value, abs=1e-4) for key, value in other.items()} == mine


def test_a_run_that_has_ended_is_not_trained_again(cuts: dict[str, Cut]) -> None:
    run, rows = cuts["scored"].run, list[dict[str, Any]]()
    again = launch(SCORED, storage=run.folder.parent, name="scored", on_row=rows.append)
    assert again.summary == run.summary()
    assert [row["text"] for row in rows if row["kind"] == "note"] == ["this run has ended: nothing is left to train"]
    assert not [row for row in rows if row["kind"] == "step"]
