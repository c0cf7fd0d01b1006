"""Scores during training: what `evaluate` says of the artifact, for any number of workers; training is not affected."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.errors import UserError
from sdxl_ray.evaluation.evaluated_models import BASE, EvaluatedModel
from sdxl_ray.evaluation.runner import evaluate
from sdxl_ray.evaluation.scores import METRICS
from sdxl_ray.evaluation.subject import Subject, load_photos
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.collectives import Collectives, SingleProcess
from sdxl_ray.io.records import read
from sdxl_ray.models.adapters import TUNINGS, denoiser_of
from sdxl_ray.models.base_model import Components
from sdxl_ray.training import in_training_evaluation
from sdxl_ray.training.checkpoint import CheckpointStore
from sdxl_ray.training.engine import LocalEngine
from sdxl_ray.training.in_training_evaluation import (
    InTrainingEvaluation,
    ScoringSetup,
    StepScores,
    prepare,
    scoring_prompts,
    scoring_settings,
)
from sdxl_ray.training.loggers import RunLogger
from sdxl_ray.training.run_directory import open_run, scan_images
from tests.running import Outcome, Train, draw_images, on_ranks

SMALL: dict[str, Any] = {
    "evaluation.every": 2,
    "evaluation.num_inference_steps": 2,
    "evaluation.guidance_scale": 2.0,
    "evaluation.score_prompts": 2,
    "evaluation.class_images": 3,
}


@pytest.fixture
def scored(recipe: Recipe, held_out: Path) -> Recipe:
    """The recipe of the tests, with evaluations that are scored by photos that nobody trained on."""
    return override(recipe, {**SMALL, "data.validation": str(held_out)})


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Step -> the quality that its evaluation is said to have, so that what follows from it can be tested."""
    script: dict[int, float] = {}
    real = InTrainingEvaluation._with_quality

    def said(self: InTrainingEvaluation, scores: StepScores) -> StepScores:
        made = real(self, scores)
        value = script.get(scores.step, 0.0)
        row = {**made.rows[-1], "value": value, "low": value, "high": value}
        return replace(made, rows=[*made.rows[:-1], row])

    monkeypatch.setattr(InTrainingEvaluation, "_with_quality", said)
    return script


def metrics(run: Outcome) -> dict[int, dict[str, float]]:
    return {row["step"]: row["metrics"] for row in run.of("scores")}


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what a clock decides, and without the run's name."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "model")} for row in rows]


@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_look_says_what_evaluate_says_of_the_artifact(
    train: Train, scored: Recipe, held_out: Path, tmp_path: Path, ema: float | None
) -> None:
    run = train(override(scored, {"optim.lr": 1e-2, "optim.ema_decay": ema, "checkpoint.every": 1}))
    found = metrics(run)
    assert list(found) == [0, 2, 4]
    assert set(found[4]) == {*METRICS, "quality"}
    assert found[2]["dino_i"] != found[4]["dino_i"]
    assert found[0]["quality"] == 0
    best = run.summary["exported_step"]
    recipe = override(scored, {})
    artifact = Artifact.open(run.folder / "artifact")
    assert artifact.manifest.step == best == run.summary["best_step"]
    models = [EvaluatedModel(BASE, recipe.base), EvaluatedModel("tuned", recipe.base, artifact, recipe.data.subject)]
    settings = scoring_settings(recipe, size=32, precision=torch.float32)
    subject = Subject("photos", "dog", load_photos(str(held_out)))
    judged = evaluate(models, subject, scoring_prompts(recipe), settings, home=tmp_path / "judged")
    assert judged is not None
    for row in judged.scores:
        if row["model"] in (BASE, "tuned") and not row["metric"].endswith("_gain"):
            here = found[best if row["model"] == "tuned" else 0][row["metric"]]
            assert here == pytest.approx(row["value"], abs=1e-6), row["metric"]


def test_scoring_leaves_no_trace_in_the_training(train: Train, scored: Recipe) -> None:
    changes = {"tuning.dropout": 0.2, "optim.ema_decay": 0.9, "checkpoint.every": 4}
    scored = override(scored, changes)
    with_scores, without = train(scored, "with"), train(override(scored, {"evaluation.scores": "never"}), "without")
    assert with_scores.of("scores") and not without.of("scores")
    assert {s: v.hex() for s, v in with_scores.losses.items()} == {s: v.hex() for s, v in without.losses.items()}
    last = [
        CheckpointStore(run.folder / "checkpoints", SingleProcess(), keep=1, keep_best=False).at(4)
        for run in (with_scores, without)
    ]
    one, two = ({f.name: f.read_bytes() for f in info.files if f.suffix == ".safetensors"} for info in last if info)
    assert one == two


def test_two_workers_score_the_same(
    scored: Recipe, components: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = scan_images(scored)

    def looks(group: Collectives, parts: Components, cache: Path) -> list[StepScores]:
        setting = ScoringSetup("run", group, cache, torch.device("cpu"), torch.float32, 32, lambda _: None)
        examiner = prepare(scored, images.train, images.held_out, parts, setting)
        assert examiner is not None
        denoiser = denoiser_of(parts, scored.tuning)
        trainable = TUNINGS[type(scored.tuning)].prepare(denoiser, scored.tuning, 0)
        with torch.no_grad():
            for _, p in trainable.named:
                p.copy_(torch.linspace(-0.2, 0.3, p.numel()).view(p.shape))
        engine = LocalEngine(
            denoiser, trainable, scored.optim, accumulation=1, device=torch.device("cpu"), precision=torch.float32
        )
        engine.group = group
        return [examiner.base, examiner.evaluate(engine, 3)]

    copies = [copy.deepcopy(components) for _ in range(2)]
    alone = looks(SingleProcess(), components, tmp_path / "one")
    both = on_ranks(2, lambda group: looks(group, copies[group.rank], tmp_path / "two"))
    for base, scores in both:
        assert plain(base.rows) == plain(alone[0].rows)
        assert scores.measured.keys() == alone[1].measured.keys()
        for name, score in alone[1].measured.items():
            assert scores.measured[name] == pytest.approx(score, abs=1e-6), name
    assert both[0] == both[1]


@pytest.mark.slow
def test_the_best_step_is_exported_and_a_run_stops_when_quality_no_longer_rises(
    train: Train, scored: Recipe, scripted: dict[int, float]
) -> None:
    scripted |= {2: 0.2, 4: 0.5, 6: 0.4, 8: 0.5005}
    recipe = override(
        scored, {"optim.steps": 20, "evaluation.patience": 2, "checkpoint.every": 7, "checkpoint.keep": 1}
    )
    run = train(recipe)
    summary = run.summary
    assert (summary["steps"], summary["best_step"], summary["exported_step"], summary["best_quality"]) == (8, 4, 4, 0.5)
    assert summary["stopped_early"] and list(run.losses) == list(range(1, 9))
    assert [row["step"] for row in run.of("checkpoint")] == [2, 4, 7, 8]
    assert sorted(p.name for p in (run.folder / "checkpoints").iterdir()) == ["step-0000004", "step-0000008"]
    assert "step 8: stopping, quality has not risen for 2 evaluations" in [row["text"] for row in run.of("note")]
    artifact = Artifact.open(run.folder / "artifact")
    assert artifact.manifest.step == 4
    until = train(override(recipe, {"optim.steps": 4, "evaluation.scores": "never"}), "until")
    weights = "pytorch_lora_weights.safetensors"
    assert (artifact.folder / weights).read_bytes() == (until.folder / "artifact" / weights).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [5, pytest.param(7, marks=pytest.mark.exhaustive)])
def test_a_killed_run_keeps_its_best_and_its_patience(
    train: Train, scored: Recipe, scripted: dict[int, float], kill_at: int
) -> None:
    scripted |= {2: 0.3, 4: 0.2, 6: 0.1}
    recipe = override(
        scored, {"optim.steps": 20, "evaluation.patience": 3, "checkpoint.every": 3, "optim.ema_decay": 0.9}
    )
    straight = train(recipe, "straight")
    assert (straight.summary["steps"], straight.summary["best_step"]) == (8, 2)
    train(recipe, "killed", kill_at=kill_at)
    again = train(recipe, "killed")
    same = ("steps", "best_step", "best_quality", "exported_step", "stopped_early", "overfitting", "validation_loss")
    assert {key: again.summary[key] for key in same} == {key: straight.summary[key] for key in same}
    theirs = {row["step"]: plain(row["rows"]) for row in straight.of("scores")}
    assert all(plain(row["rows"]) == theirs[row["step"]] for row in again.of("scores"))
    mine, other = straight.weights, again.weights
    assert all(torch.equal(w, other[name]) for name, w in mine.items())


@pytest.mark.slow
def test_a_run_that_died_after_it_stopped_only_writes_its_artifact(
    train: Train, scored: Recipe, scripted: dict[int, float]
) -> None:
    scripted |= {2: 0.3, 4: 0.2}
    recipe = override(scored, {"optim.steps": 20, "evaluation.patience": 1})
    first = train(recipe)
    (first.folder / "artifact" / "manifest.json").unlink()
    again = train(recipe)
    assert again.losses == {} and again.of("scores") == []
    assert again.summary["stopped_early"] and again.summary["steps"] == 4
    assert Artifact.open(again.folder / "artifact").manifest.step == 2


@pytest.mark.slow
def test_a_damaged_best_checkpoint_is_named_and_the_last_exported(
    train: Train, scored: Recipe, scripted: dict[int, float]
) -> None:
    scripted |= {2: 0.3, 4: 0.2}
    first = train(scored)
    next((first.folder / "checkpoints" / "step-0000002").glob("*.safetensors")).write_bytes(b"")
    again = train(scored)
    assert "the best checkpoint, of step 2, is damaged: exporting step 4" in [row["text"] for row in again.of("note")]
    assert Artifact.open(again.folder / "artifact").manifest.step == again.summary["exported_step"] == 4


def test_overfitting_is_named_once_and_kept(train: Train, scored: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    real = InTrainingEvaluation.evaluate

    def spoilt(self: InTrainingEvaluation, engine: LocalEngine, step: int) -> StepScores:
        """The subject ever more alike, and from step 4 on no prompt obeyed."""
        scores = real(self, engine, step)
        said = {"dino_i": 0.1 * step, "clip_t": 0.5 if step < 4 else 0.1}
        rows = [
            {**row, "value": v, "low": v - 0.01, "high": v + 0.01} if (v := said.get(row["metric"])) else row
            for row in scores.rows
        ]
        return replace(scores, rows=rows)

    monkeypatch.setattr(InTrainingEvaluation, "evaluate", spoilt)
    run = train(override(scored, {"optim.steps": 6}))
    (named,) = run.of("overfitting")
    assert named["step"] == 4 and "prompt fidelity fell (0.500 to 0.100)" in named["text"]
    assert run.summary["overfitting"] == {"step": 4, "text": named["text"]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.subject": None, "data.prompt": "a dog"}, "data.subject is not set"),
        ({"data.subject": "toby", "data.class_name": None}, "set data.class_name"),
        ({"data.validation": None}, "1 held-out photo, at least 2 are needed: set data.holdout=2"),
    ],
)
def test_a_run_that_cannot_be_scored_says_why(
    train: Train, scored: Recipe, changes: dict[str, Any], words: str
) -> None:
    recipe = override(scored, {**changes, "optim.steps": 2})
    run = train(recipe)
    assert not run.of("scores") and run.summary["best_quality"] is None
    assert [words in row["text"] for row in run.of("note")] == [True]
    with pytest.raises(UserError, match=rf"evaluation.scores=always: .*{words}"):
        scan_images(override(recipe, {"evaluation.scores": "always"}))


def test_what_is_never_or_only_looked_at_in_the_end_is_not_scored(train: Train, scored: Recipe) -> None:
    for changes in ({"evaluation.scores": "never"}, {"evaluation.every": 0}):
        run = train(override(scored, {**changes, "optim.steps": 2}), next(iter(changes)))
        assert not run.of("scores") and not run.of("note")
    with pytest.raises(UserError, match="scores always needs evaluations during training, every is 0"):
        override(scored, {"evaluation.every": 0, "evaluation.scores": "always"})


def test_an_encoder_that_cannot_be_reached_is_an_error_only_where_it_was_asked_for(
    train: Train, scored: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = override(scored, {"optim.steps": 2, "evaluation.identity": "nowhere"})
    with pytest.raises(UserError, match=r"no evaluation\.identity named 'nowhere'"):
        train(recipe)
    with pytest.raises(UserError, match=r"no evaluation\.identity named 'nowhere'"):
        in_training_evaluation.require_encoders(recipe)
    default = in_training_evaluation.settings_of
    monkeypatch.setattr(
        in_training_evaluation, "settings_of", lambda *a, **k: replace(default(*a, **k), identity="nowhere")
    )
    run = train(override(recipe, {"evaluation.identity": None}), "default")
    assert ["no evaluation.identity named 'nowhere'" in row["text"] for row in run.of("note")] == [True]
    in_training_evaluation.require_encoders(override(recipe, {"evaluation.identity": None}))


def test_a_held_out_copy_of_a_training_photo_is_refused(train: Train, scored: Recipe, tmp_path: Path) -> None:
    """Saved again, so that its bytes are others and only its pixels tell."""
    copies = draw_images(tmp_path / "copies", [(48, 48), (40, 56)], 7)
    with Image.open(f"{scored.data.images}/0.png") as image:
        image.save(copies / "again.png", compress_level=1)
    with pytest.raises(UserError, match=r"photo 'again\.png' is one that 'run' was trained on"):
        train(override(scored, {"data.validation": str(copies)}))


def test_rows_reach_records_and_tensorboard(train: Train, scored: Recipe, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(override(scored, {"optim.steps": 2}))
    run_logger = RunLogger(tmp_path / "kept")
    for row in run.rows:
        run_logger(row)
    run_logger({"kind": "overfitting", "step": 2, "text": "since step 1 it rose"})
    run_logger.close()
    kept = read(tmp_path / "kept" / "records", "scores").to_pylist()
    assert {(row["step"], row["model"]) for row in kept} == {(0, "base"), (0, "real"), (2, "run")}
    own = {row["metric"]: row["value"] for row in kept if row["model"] == "run"}
    assert own == metrics(run)[2] and {row["split"] for row in kept} == {"validation"}
    board = EventAccumulator(str(tmp_path / "kept" / "tensorboard")).Reload()
    assert {f"quality/{name}" for name in own} <= set(board.Tags()["scalars"])
    assert board.Scalars("quality/dino_i")[1].value == pytest.approx(own["dino_i"], rel=1e-6)
    assert "quality/overfitting/text_summary" in board.Tags()["tensors"]


def test_a_changed_judgement_is_another_run(scored: Recipe, tmp_path: Path) -> None:
    open_run(scored, tmp_path, "run", scan_images(scored))
    changed = override(scored, {"evaluation.patience": 1})
    with pytest.raises(UserError, match=r"evaluation\.patience is 3 there, 1 here"):
        open_run(changed, tmp_path, "run", scan_images(changed))
