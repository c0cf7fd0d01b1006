"""Drawing on a cluster: one worker, two workers and this process give the same images and the same scores."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.config.schema import Base
from sdxl_ray.distributed import generation as module
from sdxl_ray.distributed.generation import draw_on_workers
from sdxl_ray.errors import RunError
from sdxl_ray.evaluation.evaluated_models import EvaluatedModel
from sdxl_ray.evaluation.image_store import GenerationSettings
from sdxl_ray.evaluation.prompts import Prompts
from sdxl_ray.evaluation.runner import EvaluationResult, EvaluationSettings, evaluate
from sdxl_ray.evaluation.subject import Subject, load_photos
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.storage import Storage
from tests.bucket import bucket
from tests.random_lora import random_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.chaos]

SETTINGS = EvaluationSettings(
    GenerationSettings(2, 2.0, height=32, width=32, batch_size=3),
    seeds=2,
    class_images=3,
    draws=2,
    steps=(1,),
    resamples=100,
)
PROMPTS = Prompts(final=("a photo of {a_subject}", "a photo of {a_subject} in the snow"))


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject("robot", "robot", load_photos("subject:robot/held_out"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[EvaluatedModel]:
    recipe = override(Recipe(), {"data.images": "subject:robot", "data.subject": "sks robot"})
    artifact: Artifact = random_run(tmp_path_factory.mktemp("runs") / "lora", recipe)
    return [EvaluatedModel("base", Base()), EvaluatedModel("lora", Base(), artifact, "sks robot")]


def _score(models: list[EvaluatedModel], subject: Subject, home: Path) -> EvaluationResult:
    found = evaluate(models, subject, PROMPTS, SETTINGS, home=home)
    assert found is not None
    return found


def _values(found: EvaluationResult) -> list[tuple[Any, ...]]:
    return [(r["split"], r["model"], r["metric"], r["value"], r["low"], r["high"]) for r in found.scores]


def _drawn(home: Path) -> dict[str, Any]:
    files = (home / "pictures").rglob("*.png")
    return {file.name: np.asarray(Image.open(file).convert("RGB"), np.int16) for file in files}


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_workers_draw_and_score_what_this_process_does(
    workers: int, models: list[EvaluatedModel], subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    alone = _score(models, subject, here)
    rows: list[dict[str, Any]] = []
    draw_on_workers(models, subject, PROMPTS, SETTINGS, home=there, workers=workers, on_row=rows.append)
    with monkeypatch.context() as patch:
        patch.setattr("sdxl_ray.evaluation.runner.load_pipeline", None)  # this process only scores
        assert _values(_score(models, subject, there)) == _values(alone)
    ours, theirs = _drawn(there), _drawn(here)
    assert ours.keys() == theirs.keys()
    assert max(int(abs(ours[name] - theirs[name]).max()) for name in ours) <= 1
    assert {"drawing base", "drawing lora"} <= {row["name"] for row in rows}
    rows.clear()
    draw_on_workers(models, subject, PROMPTS, SETTINGS, home=there, workers=workers, on_row=rows.append)
    assert rows == []  # all is there: no worker starts


def test_under_a_url_images_travel_between_machines(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers' scratch is another folder than this process's, as if on another machine."""
    with bucket(monkeypatch) as served:
        _draw_under(served.whole_url("drawing"), subject, tmp_path, monkeypatch)


def _draw_under(url: str, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = Storage.of(url).root
    monkeypatch.setenv("SDXL_RAY_SCRATCH", str(tmp_path / "here"))
    place = Storage.of(url)
    assert place.root != theirs
    recipe = override(Recipe(), {"data.images": "subject:robot", "data.subject": "sks robot"})
    artifact = random_run(place.root / "lora", recipe)
    place.put_folder(place.root / "lora")
    models = [EvaluatedModel("base", Base()), EvaluatedModel("lora", Base(), artifact, "sks robot")]
    home = place.root / "judged"
    try:
        draw_on_workers(models, subject, PROMPTS, SETTINGS, home=home, workers=2, store=place)
    finally:
        shutil.rmtree(theirs, ignore_errors=True)
    monkeypatch.setattr("sdxl_ray.evaluation.runner.load_pipeline", None)  # this process only scores
    assert {row["model"] for row in _score(models, subject, home).scores} == {"base", "lora", "real"}


def test_a_worker_that_fails_ends_it_in_one_line_and_the_same_call_goes_on(
    models: list[EvaluatedModel], subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(rank: int, *rest: Any) -> None:
        if rank == 1:
            import os

            os._exit(9)
        whole(rank, *rest)

    whole = module._share
    monkeypatch.setattr(module, "_share", dies)
    with pytest.raises(RunError, match="repeat the call to resume"):
        draw_on_workers(models, subject, PROMPTS, SETTINGS, home=tmp_path, workers=2)
    monkeypatch.setattr(module, "_share", whole)
    kept = _drawn(tmp_path)
    draw_on_workers(models, subject, PROMPTS, SETTINGS, home=tmp_path, workers=2)
    after = _drawn(tmp_path)
    assert all((after[name] == image).all() for name, image in kept.items())
    assert {row["model"] for row in _score(models, subject, tmp_path).scores} == {"base", "lora", "real"}
