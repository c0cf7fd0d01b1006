"""The report: what the records say is what is written, what they do not say is absent, and bad folders are one line."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdxl_ray.records import ALL_SUBJECTS, Recorder, read
from sdxl_ray.report.arithmetic import Sdxl
from sdxl_ray.report.build import write_report
from sdxl_ray.report.facts import Facts, gather, method_of
from sdxl_ray.report.images import BUDGET_BYTES, inline_all
from sdxl_ray.report.metrics import Absent, Gain, Score, difference, mean
from sdxl_ray.report.sections import SECTIONS
from sdxl_ray.report.sections.choice import choices
from sdxl_ray.report.sections.claims import claims
from sdxl_ray.report.sections.inference import seconds_per_picture
from sdxl_ray.report.source import open_comparison
from sdxl_ray.report.winner import allowed, decide, share_of_the_way
from tests.report.synthetic import ENDS, TRAINED, WIDTH, change, pair, rescore, several_step_counts, several_subjects


def facts_of(home: Path) -> Facts:
    return gather(open_comparison(home))


class Page(HTMLParser):
    """What a page refers to, and whether its tags are closed."""

    VOID = {"meta", "link", "img", "path", "use", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.ids += [str(value) for name, value in attrs if name == "id"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_well_formed_and_refers_to_nothing_outside(written: Path) -> None:
    text = (written / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert {link.partition(":")[0] for link in page.links if not link.startswith("#")} == {"data"}
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert "script" not in page.tags
    assert "http://" not in text and "https://" not in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert len(text) < 8_000_000


def test_every_section_is_in_page_markdown_and_json(written: Path) -> None:
    page, md = (written / "report.html").read_text(), (written / "report.md").read_text()
    plain = json.loads((written / "report.json").read_text())
    assert len(plain["sections"]) == len(SECTIONS)
    for section in plain["sections"][1:]:
        assert f'id="{section["id"]}"' in page and f"## {section['title']}" in md


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


def test_a_subject_that_is_unlike_its_class_is_no_disobedience(home: Path) -> None:
    seen = allowed(facts_of(home))
    for arm in TRAINED:
        rescore(home, arm, "clip_t", ENDS["base"]["clip_t"] - seen - 0.02, encoder="tiny-clip")
    assert not decide(facts_of(home)).obedient
    rescore(home, "real", "clip_t", ENDS["base"]["clip_t"] - 0.01)
    assert not decide(facts_of(home)).obedient
    rescore(home, "real", "clip_t", ENDS["base"]["clip_t"] - 0.03)
    assert decide(facts_of(home)).obedient
    write_report(home)
    assert "fit the words for its class by 0.030 less than the base" in (home / "report.md").read_text()


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


def test_the_winner_has_the_highest_quality_not_the_most_fidelity(home: Path) -> None:
    outcome = decide(facts_of(home))
    assert outcome.winner is not None and outcome.winner.name == "dreambooth"
    assert outcome.beats_base and outcome.obedient and not outcome.dropped
    here, base = ENDS["dreambooth"], ENDS["base"]
    kept = ((0.86 - here["pres"]) / (0.86 - base["pres"]), 1 - 0.034 / 8, base["prior_loss"] / here["prior_loss"],
            here["div"] / base["div"])  # fmt: skip
    by_hand = (here["dino_i"] - 0.31) / (0.86 - 0.31) * (1 - 0.03 / 0.6) * sum(kept) / 4
    assert outcome.quality["dreambooth"].value == pytest.approx(by_hand)
    rescore(home, "dreambooth", "clip_t", 0.0)
    outcome = decide(facts_of(home))
    assert outcome.winner is not None and outcome.winner.name != "dreambooth"
    assert [arm.name for arm in outcome.dropped][-1] == "dreambooth"
    text = write_report(home).markdown.read_text()
    assert "More like the subject, but not chosen" in text and "The winner has the highest quality" in text


def test_without_a_ceiling_subject_fidelity_decides_and_says_so(home: Path) -> None:
    rescore(home, "real", "dino_i", math.nan)
    outcome = decide(facts_of(home))
    assert outcome.winner is not None and outcome.winner.name == "dreambooth" and not outcome.quality
    assert "The winner has the highest subject fidelity" in write_report(home).markdown.read_text()


@pytest.mark.parametrize(
    ("values", "headline"),
    [
        ({"dreambooth": 0.75}, "dreambooth leads; lora is within its uncertainty."),
        ({"lora": 0.3, "dreambooth": 0.31, "dreambooth_lora": 0.3}, "No arm is shown to beat the base"),
    ],
)
def test_a_close_race_is_called_one(home: Path, values: dict[str, float], headline: str) -> None:
    for model, value in values.items():
        rescore(home, model, "dino_i", value)
        rescore(home, model, "dino_i_gain", value - ENDS["base"]["dino_i"], 0.02)
    assert headline in write_report(home).html.read_text()


def test_what_is_missing_is_absent_and_says_why(home: Path) -> None:
    shutil.rmtree(home.parent / "demo-lora")
    shutil.rmtree(home / "records")
    facts = facts_of(home)
    lora = facts.arm("lora")
    assert isinstance(lora.cost.trainable, Absent) and "demo-lora is not beside" in lora.cost.trainable.reason
    assert facts.score("lora", "dino_i") == Absent("no final scores are recorded")
    text = write_report(home).markdown.read_text()
    assert "Not decided" in text and "not measured" in text and "run folder demo-lora is not beside" in text
    plain = json.loads((home / "report.json").read_text())
    assert plain["arms"]["lora"]["cost"]["peak_bytes"] == {"absent": lora.cost.trainable.reason}
    assert plain["answer"]["winner"] is None


def test_a_score_without_interval_or_number_is_shown_as_such(home: Path) -> None:
    rescore(home, "lora", "dino_i", 0.7, None)
    rescore(home, "lora", "div", math.nan, None)
    facts = facts_of(home)
    score = facts.score("lora", "dino_i")
    assert isinstance(score, Score) and score.bounded is None
    assert facts.score("lora", "div") == Absent("it was recorded as not a number")
    json.loads(write_report(home).json.read_text())


def test_scores_of_the_artifact_count_not_those_of_other_checkpoints(home: Path) -> None:
    rescore(home, "lora", "dino_i", 0.9, step=200, artifact="f" * 64)
    facts = facts_of(home)
    score = facts.score("lora", "dino_i")
    assert isinstance(score, Score) and score.value == ENDS["lora"]["dino_i"]
    assert facts.scores.checkpoints["lora", 200, "dino_i"].value == 0.9
    assert "Checkpoints of one run" in write_report(home).markdown.read_text()


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
    assert "by subject" in write_report(home).markdown.read_text()


def test_quality_against_denoising_steps_is_drawn_when_it_is_there(home: Path) -> None:
    for steps, value in ((4, 0.4), (20, 0.74)):
        rescore(home, "lora", "dino_i", value, split=f"final@{steps}")
    text = write_report(home).markdown.read_text()
    assert "Quality against denoising steps." in text and "is not measured: every picture" not in text
    assert facts_of(home).score("lora", "dino_i").value == 0.74  # type: ignore[union-attr]


def test_time_and_both_fidelities_stand_against_denoising_steps(home: Path) -> None:
    several_step_counts(home)
    text = write_report(home).markdown.read_text()
    for title in (
        "Subject fidelity (DINO-I) against denoising steps",
        "Prompt fidelity (CLIP-T) against denoising steps",
    ):
        assert title in text
    assert seconds_per_picture(facts_of(home), "lora") == pytest.approx(0.12)
    assert seconds_per_picture(facts_of(home), "lora", "final@30") == pytest.approx(0.18)
    assert "lora: 4 steps 0.024 s, 8 steps 0.048 s" in write_report(home).html.read_text()
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
    text = write_report(home).markdown.read_text()
    assert "over 2 subjects" in text and "| all subjects" not in text


def test_arms_are_told_apart_by_their_paired_difference(home: Path) -> None:
    unpaired = facts_of(home).lead("dreambooth", "lora", "dino_i")
    assert isinstance(unpaired, Gain) and not unpaired.paired
    pair(home, "dreambooth", "lora", "dino_i", 0.01, 0.004)
    facts = facts_of(home)
    assert facts.lead("dreambooth", "lora", "dino_i") == Gain(0.01, 0.006, 0.014, paired=True)
    assert facts.lead("lora", "dreambooth", "dino_i") == Gain(-0.01, -0.014, -0.006, paired=True)
    text = write_report(home).html.read_text()
    assert "Arm against arm" in text and "+0.010 better" in text
    pair(home, "dreambooth", "lora", "dino_i", -0.02, 0.01, ALL_SUBJECTS)
    assert facts_of(home).lead("dreambooth", "lora", "dino_i") == Gain(-0.02, -0.03, -0.01, paired=True)


def test_a_changed_artifact_is_named(home: Path) -> None:
    card = json.loads((home / "comparison.json").read_text())
    card["arms"]["lora"]["artifact"] = "0" * 64
    (home / "comparison.json").write_text(json.dumps(card))
    assert "lora has changed since it was scored" in write_report(home).html.read_text()


def test_names_from_files_are_text_and_nothing_else(home: Path) -> None:
    nasty = '<script>alert("x")</script> & $a_b$ | `c`'
    change(home, name=nasty, experiment=nasty)
    card = json.loads((home / "comparison.json").read_text())
    card["arms"] = {f"lora {nasty}": card["arms"]["lora"]}
    (home / "comparison.json").write_text(json.dumps(card))
    for metric in ("dino_i", "clip_t"):
        rescore(home, f"lora {nasty}", metric, 0.7)
    written = write_report(home)
    text = written.html.read_text()
    assert "<script" not in text and "&lt;script&gt;" in text
    assert Page(text).open == []
    assert "<script" not in written.markdown.read_text()


def test_pictures_that_are_gone_broken_or_outside_leave_a_hole(home: Path) -> None:
    (home / "pictures" / "lora-0-0.png").unlink()
    (home / "pictures" / "lora-0-1.png").write_bytes(b"not a picture")
    Image.new("RGB", (8, 8)).save(home.parent / "secret.png")
    row = {"step": 150, "model": "lora", "subject": "robot", "prompt": "a photo of a robot on the beach", "seed": 0,
           "purpose": "subject", "split": "final"}  # fmt: skip
    with Recorder(home / "records") as recorder:
        recorder.write("pictures", {**row, "path": "../secret.png"})
    text = write_report(home).html.read_text()
    assert text.count('class="gone"') == 3
    assert "secret" not in text


def test_large_pictures_shrink_to_the_budget(tmp_path: Path) -> None:
    paths = []
    for number in range(40):
        paths.append(tmp_path / f"{number}.png")
        Image.effect_noise((700, 500), 80 + number).convert("RGB").save(paths[-1])
    made = inline_all([*paths, *paths])
    assert sum(2 * len(picture.uri) * 3 / 4 for picture in made.values()) <= BUDGET_BYTES * 1.01
    assert all(abs(picture.width / picture.height - 1.4) < 0.02 for picture in made.values())


def test_a_report_is_the_same_every_time(home: Path) -> None:
    first = [path.read_bytes() for path in (write_report(home).html, home / "report.md", home / "report.json")]
    assert [path.read_bytes() for path in (write_report(home).html, home / "report.md", home / "report.json")] == first


def test_a_report_loads_no_framework(home: Path) -> None:
    script = (
        "import sys; from sdxl_ray.report.build import write_report; write_report(sys.argv[1]);"
        "print(sorted({'torch', 'ray', 'diffusers', 'transformers', 'deepspeed'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(home)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("recipe", "method"),
    [
        ({"tuning": {"kind": "lora"}, "data": {}}, "LoRA"),
        ({"tuning": {"kind": "lora"}, "data": {"prior": {"count": 3}}}, "DreamBooth + LoRA"),
        ({"tuning": {"kind": "full"}, "data": {"prior": {"count": 3}}}, "DreamBooth"),
        ({"tuning": {"kind": "full"}, "data": {"prior": None}}, "DreamBooth without prior"),
        ({}, "unknown"),
    ],
)
def test_a_recipe_is_called_by_the_proposals_words(recipe: dict[str, Any], method: str) -> None:
    assert method_of(recipe) == method


def test_the_share_of_the_way_needs_both_ends(home: Path) -> None:
    assert share_of_the_way(facts_of(home), "lora", "dino_i") == pytest.approx((0.74 - 0.31) / (0.86 - 0.31))
    assert share_of_the_way(facts_of(home), "lora", "div") is None


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
    written = write_report(home)
    text = written.markdown.read_text()
    assert "lora: step 75 of 150 was kept; training stopped at step 150, as quality no longer rose" in text
    assert "overfitting showed at step 100: since step 75 subject fidelity rose, but diversity fell" in text
    assert "Quality against steps: lora from 0.400 to 0.500" in written.html.read_text()
    assert "dreambooth: step" not in text
    assert "photos that chose neither" not in text
    assert "The held-out photos are those that, under other prompts and seeds, chose the checkpoint of lora." in text


def test_only_likeness_to_photos_decides(home: Path) -> None:
    reason = "1 held-out photo, at least 2 are needed"
    rows = read(home / "records", "scores").to_pylist()
    without = ("dino_i", "clip_i", "pres")
    with Recorder(home / "records") as recorder:
        recorder.forget("scores")
        for row in rows:
            if row["metric"].removesuffix("_gain") not in without:
                recorder.write("scores", row)
    change(home, absent=dict.fromkeys(without, reason))
    facts = facts_of(home)
    outcome = decide(facts)
    assert outcome.winner is None and outcome.why == reason
    found = {claim.claim: claim for claim in claims(facts, Sdxl())}
    assert found["3 to 5 photos suffice"].measured == Absent(reason)
    rows_of = {row.question: row for row in choices(facts)}
    assert rows_of["Personalisation"].better == Absent(reason) and "DINO-I" in rows_of["Personalisation"].measure
    written = write_report(home)
    text = written.markdown.read_text()
    assert f"Not decided: {reason}." in text and "highest subject fidelity" not in text
    assert "Subject fidelity (DINO-I)" in text and "Prompt fidelity (CLIP-T)" in text
    assert written.plain["scores"]["lora"]["dino_i"] == {"absent": reason}
    assert written.plain["answer"]["winner"] is None


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
