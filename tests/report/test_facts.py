"""What a report gathers: scores, costs, intervals, runs, recipes, and what is missing."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from sdxl_ray.io.records import Recorder
from sdxl_ray.report.facts import method_of
from sdxl_ray.report.metrics import Absent, Gain, Score, difference, mean
from sdxl_ray.report.sections.inference import seconds_per_image
from tests.report.synthetic import (
    ENDS,
    TRAINED,
    WIDTH,
    alts_of,
    facts_of,
    plain_of,
    rescore,
    several_step_counts,
    several_subjects,
    text_of,
)

pytestmark = pytest.mark.slow


def test_scores_come_out_as_they_went_in(written: Path) -> None:
    facts = facts_of(written)
    for model, ends in ENDS.items():
        for metric, value in ends.items():
            score = facts.score(model, metric)
            assert isinstance(score, Score) and score.value == value and score.n == 24
    plain = json.loads((written / "report.json").read_text())
    assert plain["scores"]["lora"]["dino_i"]["value"] == ENDS["lora"]["dino_i"]
    md = (written / "report.md").read_text()
    assert "0.740 \\[0.705, 0.775]" in md
    assert "0.740" in (written / "report.html").read_text()


def test_costs_come_from_the_runs(written: Path) -> None:
    facts = facts_of(written)
    for arm in facts.arms:
        assert arm.cost.trainable == TRAINED[arm.name]
        assert arm.cost.artifact_bytes == 2 * (TRAINED[arm.name] // 10)
        assert arm.cost.steps == 150 and arm.cost.workers == 2 and arm.photos == 5
        assert isinstance(arm.cost.train_s, float) and arm.cost.whole_s == pytest.approx(50.5)
        assert len(arm.curves[0].loss) == 150 and len(arm.curves[0].quality["dino_i"]) == 7
    assert [arm.method for arm in facts.arms] == ["LoRA", "DreamBooth", "DreamBooth + LoRA"]


def test_the_paired_difference_is_taken_before_the_intervals(home: Path) -> None:
    facts = facts_of(home)
    paired, not_paired = facts.gain("lora", "dino_i"), facts.gain("lora", "clip_i")
    assert isinstance(paired, Gain) and paired.paired and paired.low == pytest.approx(0.41)
    assert isinstance(not_paired, Gain) and not not_paired.paired
    assert not_paired.low == pytest.approx(0.19 - math.hypot(WIDTH, WIDTH))
    drift = facts.gain("lora", "class_kid")
    assert isinstance(drift, Gain) and drift.value == 0.021  # the base's distance to itself is 0


def test_intervals_of_means_and_differences_are_those_of_independent_errors() -> None:
    a, b = Score(0.5, 0.4, 0.7, 10), Score(0.3, 0.1, 0.4, 20)
    both = mean([a, b])
    assert (both.value, both.n, both.subjects) == (0.4, 30, 2)
    assert both.low == pytest.approx(0.4 - math.sqrt(0.1**2 + 0.2**2) / 2)
    assert both.high == pytest.approx(0.4 + math.sqrt(0.2**2 + 0.1**2) / 2)
    gain = difference(a, b)
    assert gain.value == pytest.approx(0.2)
    assert gain.low == pytest.approx(0.2 - math.sqrt(0.1**2 + 0.1**2))
    assert gain.high == pytest.approx(0.2 + math.sqrt(0.2**2 + 0.2**2))
    assert mean([a, Score(0.3)]).bounded is None
    assert difference(a, Score(0.3)).direction("higher") == "unknown"
    assert Gain(-0.2, -0.3, -0.1, True).direction("lower") == "better"
    assert Gain(-0.2, -0.3, 0.1, True).direction("lower") == "even"


def test_what_is_missing_is_absent_and_says_why(home: Path) -> None:
    shutil.rmtree(home.parent / "demo-lora")
    shutil.rmtree(home / "records")
    facts = facts_of(home)
    lora = facts.arm("lora")
    assert isinstance(lora.cost.trainable, Absent) and "demo-lora is not beside" in lora.cost.trainable.reason
    assert facts.score("lora", "dino_i") == Absent("no final scores are recorded")
    text = text_of(home)
    assert "Not decided" in text and "not measured" in text and "run folder demo-lora is not beside" in text
    plain = plain_of(home)
    assert plain["arms"]["lora"]["cost"]["peak_bytes"] == {"absent": lora.cost.trainable.reason}
    assert plain["answer"]["winner"] is None


def test_a_score_without_interval_or_number_is_shown_as_such(home: Path) -> None:
    rescore(home, "lora", "dino_i", 0.7, None)
    rescore(home, "lora", "div", math.nan, None)
    facts = facts_of(home)
    score = facts.score("lora", "dino_i")
    assert isinstance(score, Score) and score.bounded is None
    assert facts.score("lora", "div") == Absent("it was recorded as not a number")
    json.dumps(plain_of(home), allow_nan=False)


def test_scores_of_the_artifact_count_not_those_of_other_checkpoints(home: Path) -> None:
    rescore(home, "lora", "dino_i", 0.9, step=200, artifact="f" * 64)
    facts = facts_of(home)
    score = facts.score("lora", "dino_i")
    assert isinstance(score, Score) and score.value == ENDS["lora"]["dino_i"]
    assert facts.scores.checkpoints["lora", 200, "dino_i"].value == 0.9
    assert "Checkpoints of one run" in text_of(home)


def test_an_arm_of_several_runs_is_one_arm(home: Path) -> None:
    card = json.loads((home / "comparison.json").read_text())
    both = {"robot": "demo-lora", "cat": "demo-dreambooth_lora"}
    card["arms"] = {"lora": {**card["arms"]["lora"], "run": both, "artifact": None}}
    (home / "comparison.json").write_text(json.dumps(card))
    rescore(home, "lora", "dino_i", 0.5, subject="cat")
    rescore(home, "base", "dino_i", 0.2, subject="cat")
    facts = facts_of(home)
    score = facts.score("lora", "dino_i")
    assert isinstance(score, Score) and score.subjects == 2 and score.value == pytest.approx(0.62)
    assert facts.arms[0].cost.trainable == TRAINED["dreambooth_lora"]
    assert [curve.label for curve in facts.arms[0].curves] == ["robot", "cat"]
    assert "by subject" in text_of(home)


def test_quality_against_denoising_steps_is_drawn_when_it_is_there(home: Path) -> None:
    for steps, value in ((4, 0.4), (20, 0.74)):
        rescore(home, "lora", "dino_i", value, split=f"final@{steps}")
    text = text_of(home)
    assert "Quality against denoising steps." in text and "is not measured: every image" not in text
    assert facts_of(home).score("lora", "dino_i").value == 0.74  # type: ignore[union-attr]


def test_time_and_both_fidelities_stand_against_denoising_steps(home: Path) -> None:
    several_step_counts(home)
    text = text_of(home)
    for title in (
        "Subject fidelity (DINO-I) against denoising steps",
        "Prompt fidelity (CLIP-T) against denoising steps",
    ):
        assert title in text
    assert seconds_per_image(facts_of(home), "lora") == pytest.approx(0.12)
    assert seconds_per_image(facts_of(home), "lora", "final@30") == pytest.approx(0.18)
    assert any("lora: 4 steps 0.024 s, 8 steps 0.048 s" in alt for alt in alts_of(home))
    assert "without distillation, lora: DINO-I" in text


def test_joined_scores_are_the_evaluators_own(home: Path) -> None:
    several_subjects(home)
    facts = facts_of(home)
    assert facts.subjects == ("frog", "robot")
    score = facts.score("lora", "dino_i")
    assert isinstance(score, Score)
    assert (score.value, score.low, score.subjects) == (pytest.approx(0.73), pytest.approx(0.73 - WIDTH), 2)
    frog = facts.score("lora", "dino_i", "frog")
    assert isinstance(frog, Score) and frog.value == pytest.approx(0.72)
    gain = facts.gain("lora", "dino_i")
    assert isinstance(gain, Gain) and gain.paired and gain.value == pytest.approx(0.42)
    text = text_of(home)
    assert "over 2 subjects" in text and "| all subjects" not in text


def test_a_changed_artifact_is_named(home: Path) -> None:
    card = json.loads((home / "comparison.json").read_text())
    card["arms"]["lora"]["artifact"] = "0" * 64
    (home / "comparison.json").write_text(json.dumps(card))
    assert "lora has changed since it was scored" in text_of(home)


@pytest.mark.parametrize(
    ("recipe", "method"),
    [
        ({"tuning": {"kind": "lora"}, "data": {}}, "LoRA"),
        ({"tuning": {"kind": "lora"}, "data": {"prior": {"num_class_images": 3}}}, "DreamBooth + LoRA"),
        ({"tuning": {"kind": "full"}, "data": {"prior": {"num_class_images": 3}}}, "DreamBooth"),
        ({"tuning": {"kind": "full"}, "data": {"prior": None}}, "DreamBooth without prior"),
        ({}, "unknown"),
    ],
)
def test_a_recipe_is_called_by_its_method(recipe: dict[str, Any], method: str) -> None:
    assert method_of(recipe) == method


def test_other_numbers_of_steps_are_those_of_the_artifact(home: Path) -> None:
    several_step_counts(home)
    rescore(home, "lora", "dino_i", 0.01, step=75, artifact="f" * 64, split="final@4")
    drawn = facts_of(home).scores.drawn["lora", "dino_i", 4]
    assert drawn.value == pytest.approx(ENDS["lora"]["dino_i"] * (1 - math.exp(-4 / 6)))


def test_a_run_that_was_trained_otherwise_says_so_and_shows_its_own_recipe(home: Path) -> None:
    card = json.loads((home / "comparison.json").read_text())
    recipe = card["arms"]["lora"]["recipe"]
    (home.parent / "demo-lora" / "run.json").write_text(json.dumps({"recipe": recipe}))
    assert facts_of(home).warnings == ()
    own = {**recipe, "parallel": {**recipe["parallel"], "zero_stage": 3}}
    (home.parent / "demo-lora" / "run.json").write_text(json.dumps({"recipe": own}))
    facts = facts_of(home)
    assert facts.arm("lora").setting("parallel.zero_stage") == 3
    assert facts.warnings == (
        "lora: parallel.zero_stage is 3 in run demo-lora, trained before; its time and memory are of that",
    )


def test_what_a_runs_own_scores_decided_is_told(home: Path) -> None:
    run = home.parent / "demo-lora"
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"exported_step": 75, "best_quality": 0.6, "stopped_early": True}
    summary |= {"overfitting": {"step": 100, "text": "since step 75 subject fidelity rose, but diversity fell"}}
    (run / "summary.json").write_text(json.dumps(summary))
    known = {"model": "lora", "subject": "robot", "metric": "quality", "n": 24, "split": "validation"}
    with Recorder(run / "records") as recorder:
        for step, value in ((50, 0.4), (75, 0.6), (100, 0.5)):
            recorder.write("scores", {**known, "step": step, "value": value, "low": value - 0.1, "high": value + 0.1})
    (curves,) = facts_of(home).arm("lora").curves
    assert [(step, score.value) for step, score in curves.quality["quality"]] == [(50, 0.4), (75, 0.6), (100, 0.5)]
    text = text_of(home)
    assert "lora: step 75 of 150 was kept; training stopped at step 150, as quality no longer rose" in text
    assert "overfitting showed at step 100: since step 75 subject fidelity rose, but diversity fell" in text
    assert any("Quality against steps: lora from 0.400 to 0.500" in alt for alt in alts_of(home))
    assert "dreambooth: step" not in text
    assert "photos that chose neither" not in text
    assert "The held-out photos are those that, under other prompts and seeds, chose the checkpoint of lora." in text
