"""Judging the arms of an experiment: what is left of an earlier call, and what cannot be scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdxl_ray.comparison.evaluate import ArmEvaluation, judge
from sdxl_ray.config.experiment import Experiment
from sdxl_ray.io.records import ALL_SUBJECTS, read
from sdxl_ray.io.storage import Storage
from tests.random_lora import random_run

SETTINGS = {"parallel.engine": "local", "parallel.workers": 1, "evaluation.num_inference_steps": 1}

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def _taught(name: str) -> dict[str, Any]:
    return {"data.images": f"subject:{name}", "data.validation": f"subject:{name}/held_out",
            "data.subject": f"sks {name}", "data.class_name": name}  # fmt: skip


def _judged(tmp_path: Path, **plain: Any) -> ArmEvaluation | None:
    """Arms that were not trained: one random LoRA each."""
    (tmp_path / "prompts.txt").write_text("a photo of {a_subject}\n")
    known = {"prompts": str(tmp_path / "prompts.txt"), "seeds": 1, "class_images": 2, "steps": [2]}
    experiment = Experiment.model_validate({"arms": {"lora": {"recipe": "tiny_lora"}}, **known, **plain})
    runs = experiment.runs({})
    storage = tmp_path / "runs"
    artifacts = []
    for number, run in enumerate(runs):
        folder = storage / f"{len(list(storage.glob('*')))}-{number}"
        artifacts.append(random_run(folder, run.recipe))
    return judge(experiment, runs, artifacts, Storage.of(tmp_path), tmp_path / "home", 0, lambda row: None)


def test_what_is_no_longer_compared_is_forgotten(tmp_path: Path) -> None:
    both = {name: {"settings": _taught(name)} for name in ("robot", "frog")}
    _judged(tmp_path, settings=SETTINGS, subjects=both)
    tables = {name: read(tmp_path / "home" / "records", name).to_pylist() for name in ("scores", "differences")}
    assert {row["subject"] for row in tables["scores"]} == {"robot", "frog", ALL_SUBJECTS}
    _judged(tmp_path, settings=SETTINGS, subjects={"robot": both["robot"]}, steps=[])
    for name in ("scores", "differences", "pictures"):
        rows = read(tmp_path / "home" / "records", name).to_pylist()
        assert {row["subject"] for row in rows} == {"robot"}
        assert {row["split"] for row in rows} == {"final"}
    captions = {"data.images": "subject:robot", "data.prompt": "a photo of a robot"}
    assert _judged(tmp_path, settings=SETTINGS | captions) is None
    assert read(tmp_path / "home" / "records", "scores").num_rows == 0


def test_without_held_out_photos_the_scores_that_need_them_are_missing(tmp_path: Path) -> None:
    alone = {**SETTINGS, **_taught("robot"), "data.validation": None, "data.holdout": 0}
    judged = _judged(tmp_path, settings=alone)
    assert judged is not None
    found = judged.evaluation
    needed = "0 held-out photos, at least 2 are needed"
    assert {found.missing[name] for name in ("dino_i", "clip_i", "pres")} == {needed}
    assert {row["metric"] for row in found.scores} >= {"clip_t", "class_kid", "prior_loss"}
    assert not {"dino_i", "clip_i", "pres"} & {row["metric"] for row in found.scores if row["value"] is not None}
    assert f"dino_i, clip_i and pres are absent: {needed}" in found.absent
