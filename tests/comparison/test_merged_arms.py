"""An arm that is a merge is made once of the same sources, and knows what they were trained on."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sdxl_ray.comparison.merged_arms import make_merge, require_makeable
from sdxl_ray.config.experiment import ArmRun
from sdxl_ray.config.merging import Merging
from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.distributed.train import RunResult
from sdxl_ray.errors import UserError
from sdxl_ray.evaluation.subject import training_images
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.storage import Storage
from tests.random_lora import random_artifact, random_run


def _recipe(subject: str) -> Recipe:
    return override(Recipe(), {"data.images": f"subject:{subject}", "data.subject": f"sks {subject}"})


def test_a_merge_is_made_again_only_when_something_about_it_changed(tmp_path: Path) -> None:
    runs = [ArmRun("lora", subject, subject, _recipe(subject)) for subject in ("robot", "frog")]
    results: dict[int, RunResult] = {}
    for number, run in enumerate(runs):
        folder = tmp_path / run.subject
        artifact = random_run(folder, run.recipe, strength=1.0 + number)
        results[id(run)] = RunResult(folder, artifact.folder, {"steps": 1}, str(folder))
    store = Storage.usable(tmp_path / "runs")
    folder = store.root / "mine-both"

    def made(first: float = 1.0, **settings: object) -> Artifact:
        sources = ((runs[0], first), (runs[1], 1.0))
        run = ArmRun("both", "robot", "", runs[0].recipe, Merging(**settings), sources)
        require_makeable(run, folder)
        return Artifact.open(make_merge(run, results, folder, store, lambda row: None).artifact)

    one = made()
    assert made().manifest == one.manifest
    assert made(0.5).hash != one.hash
    assert made(0.5, into="model").manifest.kind == "full"
    seen = training_images(made())
    assert seen is not None
    both = [pq.read_table(tmp_path / run.subject / "pictures" / "train.parquet").num_rows for run in runs]
    assert len(seen) == sum(both)


def test_what_is_wrong_with_a_source_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    recipe, nothing = _recipe("robot"), tmp_path / "nothing"
    lora = random_artifact(tmp_path / "lora", 1)
    wrong = ArmRun("both", "", "", recipe, Merging(), ((str(nothing), 1.0),))
    with pytest.raises(UserError, match=r"arm 'both': artifact .*no such folder"):
        require_makeable(wrong, tmp_path / "mine-both")
    run = ArmRun("both", "", "", recipe, Merging(rank=3, blocks={"mid": 0.5}), ((str(lora.folder), 1.0),))
    require_makeable(run, tmp_path / "mine-both")
    (tmp_path / "mine-both").mkdir()
    (tmp_path / "mine-both" / "notes.txt").touch()
    with pytest.raises(UserError, match="holds no merge"):
        require_makeable(run, tmp_path / "mine-both")
