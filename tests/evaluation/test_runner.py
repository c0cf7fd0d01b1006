"""A whole evaluation on the embedded base: rows, references, resuming, workers, and what is absent."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.evaluation import runner as module
from sdxl_ray.evaluation.encoders import load_encoder
from sdxl_ray.evaluation.evaluated_models import EvaluatedModel
from sdxl_ray.evaluation.image_store import GenerationSettings
from sdxl_ray.evaluation.prior_loss import prior_losses
from sdxl_ray.evaluation.prompts import Prompts
from sdxl_ray.evaluation.runner import FIRST_SEED, EvaluationPlan, EvaluationResult, EvaluationSettings, evaluate
from sdxl_ray.evaluation.scores import METRICS
from sdxl_ray.evaluation.subject import Subject, load_photos
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.records import Recorder, read
from sdxl_ray.models.pipeline import generate, load_pipeline
from tests.running import on_ranks

Whole = tuple[EvaluationResult, Path, list[dict[str, Any]]]

SETTINGS = EvaluationSettings(
    GenerationSettings(1, 2.0, height=32, width=32, batch_size=3), seeds=2, class_images=3, draws=2
)
PROMPTS = Prompts(final=("a photo of {a_subject}", "a photo of {a_subject} in the snow"))


@pytest.fixture(scope="module")
def subject(held_out: Path, others: Path) -> Subject:
    return Subject("toby", "dog", load_photos(str(held_out)), load_photos(str(others)))


@pytest.fixture(scope="module")
def models(artifact: Artifact) -> list[EvaluatedModel]:
    return [EvaluatedModel("base", Base()), EvaluatedModel("lora", Base(), artifact, "sks dog")]


@pytest.fixture(autouse=True, scope="module")
def quick_loading() -> Iterator[None]:
    """Models are loaded once and copied: loading takes longer than drawing, and cannot be done in threads."""
    lock, kept = threading.Lock(), dict[str, Any]()

    def load(base: Base, artifact: Artifact | None, **options: Any) -> Any:
        with lock:
            name = artifact.hash if artifact else "base"
            if name not in kept:
                kept[name] = load_pipeline(base, artifact, **options)
            return copy.deepcopy(kept[name])

    def encoder(name: str, **options: Any) -> Any:
        with lock:
            return load_encoder(name, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_pipeline", load)
        patch.setattr(module, "load_encoder", encoder)
        yield


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every prompt that a model really drew."""
    prompts: list[str] = []

    def counting(pipe: Any, some: Any, **options: Any) -> Any:
        prompts.extend(some)
        return generate(pipe, some, **options)

    monkeypatch.setattr("sdxl_ray.evaluation.image_store.generate", counting)
    yield prompts


def _run(
    models: list[EvaluatedModel], subject: Subject, home: Path, settings: EvaluationSettings = SETTINGS, **more: Any
) -> EvaluationResult:
    found = evaluate(models, subject, PROMPTS, settings, home=home, **more)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def whole(
    quick_loading: None, models: list[EvaluatedModel], subject: Subject, tmp_path_factory: pytest.TempPathFactory
) -> Whole:
    """One evaluation, its folder, and the rows it reported."""
    home, rows = tmp_path_factory.mktemp("whole"), list[dict[str, Any]]()
    return _run(models, subject, home, on_row=rows.append), home, rows


def _values(found: EvaluationResult) -> dict[tuple[str, str], float | None]:
    return {(row["model"], row["metric"]): row["value"] for row in found.scores}


def test_rows_of_models_and_references(whole: Whole, models: list[EvaluatedModel]) -> None:
    found, home, rows = whole
    values = _values(found)
    assert set(values) == {
        *(("base", name) for name in METRICS),
        *(("lora", name) for name in (*METRICS, *(f"{name}_gain" for name in METRICS))),
        *((model, name) for model in ("real", "other") for name in ("dino_i", "clip_i")),
        ("real", "clip_t"),
    }
    assert found.absent == []
    assert values["base", "class_kid"] == pytest.approx(0, abs=1e-9)
    for name in METRICS:
        gain = values["lora", f"{name}_gain"]
        assert gain == pytest.approx(values["lora", name] - values["base", name], abs=1e-9)  # type: ignore[operator]
    assert {row["kind"] for row in rows} == {"phase"}
    with Recorder(home / "records") as recorder:
        found.record(recorder)
    kept = read(home / "records", "scores").to_pylist()
    assert {(row["model"], row["metric"]) for row in kept} == set(values)
    lora = next(row for row in kept if (row["model"], row["metric"]) == ("lora", "dino_i"))
    assert (lora["step"], lora["n"], lora["encoder"], lora["split"]) == (7, 4, "tiny-identity", "final")
    assert lora["artifact"] == models[1].hash
    assert lora["low"] <= lora["value"] <= lora["high"]
    images = read(home / "records", "pictures").to_pylist()
    assert len(images) == 2 * (4 + 3) + 3
    for row in images:
        with Image.open(home / row["path"]) as image:
            assert row["purpose"] == "real" or image.size == (32, 32)
    prompts = {model: {row["prompt"] for row in images if row["model"] == model} for model in ("base", "lora")}
    assert prompts["base"] == prompts["lora"] == {"a photo of a dog", "a photo of a dog in the snow"}


def test_scores_agree_with_plain_arithmetic_on_the_images(whole: Whole, subject: Subject) -> None:
    found, home, _ = whole
    identity, clip = load_encoder("tiny-identity"), load_encoder("tiny-clip")

    def opened(model: str, purpose: str) -> list[tuple[str, Image.Image]]:
        chosen = [row for row in found.images if (row["model"], row["purpose"]) == (model, purpose)]
        return [(row["prompt"], Image.open(home / row["path"]).convert("RGB")) for row in chosen]

    photos = [photo.image for photo in subject.photos]
    images = opened("lora", "subject")
    cosines = [
        float(one @ two) for one in identity.images([image for _, image in images]) for two in identity.images(photos)
    ]
    values = _values(found)
    assert values["lora", "dino_i"] == pytest.approx(float(np.mean(cosines)), abs=1e-5)
    by_prompt = [float(clip.images([image])[0] @ clip.texts([prompt])[0]) for prompt, image in images]
    assert values["lora", "clip_t"] == pytest.approx(float(np.mean(by_prompt)), abs=1e-5)
    leaks = [float(a @ b) for a in identity.images([p for _, p in opened("lora", "class")])
             for b in identity.images(photos)]  # fmt: skip
    assert values["lora", "pres"] == pytest.approx(float(np.mean(leaks)), abs=1e-5)


def test_the_base_draws_the_class_and_an_artifact_its_subject(models: list[EvaluatedModel]) -> None:
    plan = EvaluationPlan.of(models, "dog", PROMPTS, SETTINGS)
    assert [job.prompt for job in plan.subject["base"][1]] == ["a photo of a dog in the snow"] * 2
    assert [job.prompt for job in plan.subject["lora"][1]] == ["a photo of sks dog in the snow"] * 2
    assert [job.seed for job in plan.subject["lora"][1]] == [job.seed for job in plan.subject["base"][1]]
    firsts = set(FIRST_SEED.values())
    assert len(firsts) == 3
    assert min(abs(a - b) for a in firsts for b in firsts if a != b) > 100_000


def test_nothing_is_drawn_twice_and_the_last_bit_stays(
    models: list[EvaluatedModel], subject: Subject, tmp_path: Path, drawn: list[str]
) -> None:
    first = _run(models, subject, tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    assert len(drawn) == (4 + 3 - 2) + (4 + 3)  # two of the base's class images are its subject's too
    drawn.clear()
    again = _run(models, subject, tmp_path)
    assert drawn == []
    strip = {"seconds"}
    assert [{k: v for k, v in row.items() if k not in strip} for row in again.scores] == [
        {k: v for k, v in row.items() if k not in strip} for row in first.scores
    ]
    damaged = tmp_path / next(row["path"] for row in first.images if row["model"] == "lora")
    damaged.write_bytes(damaged.read_bytes()[:100])
    next(tmp_path.rglob("prior-*.json")).write_text("[1.0")
    assert _values(_run(models, subject, tmp_path)) == _values(first)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == files
    assert 0 < len(drawn) <= 3


def test_two_workers_draw_and_score_the_same(
    whole: Whole, models: list[EvaluatedModel], subject: Subject, tmp_path: Path
) -> None:
    alone, home, _ = whole
    results = on_ranks(2, lambda group: evaluate(models, subject, PROMPTS, SETTINGS, home=tmp_path, group=group))
    assert results[1] is None
    assert _values(results[0]) == _values(alone)
    ours, theirs = ({path.name: path.read_bytes() for path in folder.rglob("*.png")} for folder in (home, tmp_path))
    assert ours == theirs


def test_what_cannot_be_scored_is_absent_and_says_why(
    models: list[EvaluatedModel], subject: Subject, tmp_path: Path
) -> None:
    few = Subject("toby", "dog", subject.photos[:1])
    settings = EvaluationSettings(SETTINGS.drawing, seeds=1, class_images=2, draws=1)
    found = _run(models[1:], few, tmp_path, settings)
    assert {name for (_, name), value in _values(found).items() if value is not None} == {"clip_t"}
    assert len(found.absent) == 3
    assert "1 held-out photo, at least 2 are needed" in found.absent[0]
    with Recorder(tmp_path / "records") as recorder:
        found.record(recorder)
    assert read(tmp_path / "records", "scores")["metric"].to_pylist() == ["clip_t"]


def test_what_is_wrong_is_said_before_anything_is_drawn(
    models: list[EvaluatedModel], subject: Subject, photos: Path, tmp_path: Path, drawn: list[str]
) -> None:
    with pytest.raises(UserError, match="trained on"):
        _run(models, Subject("toby", "dog", load_photos(str(photos))), tmp_path)
    for changes, words in (
        ({"identity": "dinov2-base"}, "--identity=FOLDER"),
        ({"clip": "tiny-identity"}, "reads no text"),
        ({"split": "tune"}, "no list 'tune'"),
    ):
        with pytest.raises(UserError, match=words):
            _run(models, subject, tmp_path, EvaluationSettings(SETTINGS.drawing, **changes))  # type: ignore[arg-type]
    assert drawn == []


def test_the_prior_loss_is_of_the_same_noise_and_rises_when_weights_are_spoilt(held_out: Path) -> None:
    pipe = load_pipeline(Base(), None, dtype=torch.float32, device="cpu")
    images = [photo.image.resize((32, 32)) for photo in load_photos(str(held_out))]
    prompts = ["a photo of a dog"] * 3
    losses = prior_losses(pipe, images, prompts, seed=1, draws=2)
    np.testing.assert_allclose(prior_losses(pipe, images[:2], prompts[:2], seed=1, draws=2), losses[:2], rtol=1e-6)
    assert not np.allclose(prior_losses(pipe, images, prompts, seed=2, draws=2), losses)
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(5)
    assert prior_losses(pipe, images, prompts, seed=1, draws=2).mean() > losses.mean()


def test_prompts_are_as_long_as_a_model_was_trained_with(artifact: Artifact) -> None:
    recipe = {**artifact.manifest.recipe, "data": {**artifact.manifest.recipe.get("data", {}), "max_token_length": 150}}
    longer = replace(artifact, manifest=artifact.manifest.model_copy(update={"recipe": recipe}))
    prompts = Prompts(final=("a photo of {a_subject}" + " in the snow" * 10,))  # 35 tokens, a chunk has 30
    lists: dict[str, list[EvaluatedModel]] = {
        "before": [EvaluatedModel("base", Base()), EvaluatedModel("lora", Base(), artifact, "sks dog")],
        "longer": [EvaluatedModel("base", Base()), EvaluatedModel("lora", Base(), longer, "sks dog")],
    }
    plans = {name: EvaluationPlan.of(models, "dog", prompts, SETTINGS) for name, models in lists.items()}
    assert {name: plan.max_token_length for name, plan in plans.items()} == {"before": 75, "longer": 150}
    keys = {name: plan.jobs(lists[name][0])[0].key for name, plan in plans.items()}
    assert keys["before"] != keys["longer"]  # the base is drawn with the whole prompt too
    fixed = replace(SETTINGS, drawing=replace(SETTINGS.drawing, max_token_length=75))
    assert EvaluationPlan.of(lists["longer"], "dog", prompts, fixed).jobs(lists["longer"][0])[0].key == keys["before"]

    clip = load_encoder("tiny-clip")
    notes = {name: list[str]() for name in plans}
    for name, plan in plans.items():
        module.report_truncation(lists[name], plan, clip, lambda row, name=name: notes[name].append(row["text"]))  # type: ignore[misc]
    last = "note: clip_t is of the first 30 tokens of 1 prompts: tiny-clip takes no more"
    assert notes["longer"] == [last]
    assert [note.split(", ")[0] for note in notes["before"]] == [
        "note: a prompt has 35 tokens", "note: a prompt has 35 tokens", last,
    ]  # fmt: skip
    assert all("max_token_length 150 uses it all" in note for note in notes["before"][:2])
