"""Which arm wins, and when nobody does."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sdxl_ray.io.records import ALL_SUBJECTS, Recorder, read
from sdxl_ray.report.arithmetic import Sdxl
from sdxl_ray.report.metrics import Absent, Gain
from sdxl_ray.report.ranking import allowed, decide, share_of_the_way
from sdxl_ray.report.sections.choice import choices
from sdxl_ray.report.sections.claims import claims
from tests.report.synthetic import (
    ENDS,
    TRAINED,
    change,
    facts_of,
    pair,
    plain_of,
    rescore,
    text_of,
)

pytestmark = pytest.mark.slow


def test_a_subject_that_is_unlike_its_class_is_no_disobedience(home: Path) -> None:
    seen = allowed(facts_of(home))
    assert seen is not None
    for arm in TRAINED:
        rescore(home, arm, "clip_t", ENDS["base"]["clip_t"] - seen - 0.02, encoder="tiny-clip")
    assert not decide(facts_of(home)).obedient
    rescore(home, "real", "clip_t", ENDS["base"]["clip_t"] - 0.01)
    assert not decide(facts_of(home)).obedient
    rescore(home, "real", "clip_t", ENDS["base"]["clip_t"] - 0.03)
    assert decide(facts_of(home)).obedient
    assert "fit the words for its class by 0.030 less than the base" in text_of(home)


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
    text = text_of(home)
    assert "More like the subject, but not chosen" in text and "The winner has the highest quality" in text


def test_an_encoder_of_unknown_scale_is_named_and_not_taken_for_another(home: Path) -> None:
    for model in ("base", "real", *TRAINED):
        value = ENDS["base"]["clip_t"] - (0.2 if model in TRAINED else 0.0)  # far beyond what ViT-B/32 allows
        rescore(home, model, "clip_t", value, encoder="clip-vit-l14")
    assert allowed(facts_of(home)) is None
    text = text_of(home)
    assert "no scale of CLIP-T is known for 'clip-vit-l14', clip-vit-b32 has one" in text
    assert "a loss that people see" not in text


def test_without_a_ceiling_subject_fidelity_decides_and_says_so(home: Path) -> None:
    rescore(home, "real", "dino_i", math.nan)
    outcome = decide(facts_of(home))
    assert outcome.winner is not None and outcome.winner.name == "dreambooth" and not outcome.quality
    assert "The winner has the highest subject fidelity" in text_of(home)


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
    assert headline in text_of(home)


def test_arms_are_told_apart_by_their_paired_difference(home: Path) -> None:
    unpaired = facts_of(home).lead("dreambooth", "lora", "dino_i")
    assert isinstance(unpaired, Gain) and not unpaired.paired
    pair(home, "dreambooth", "lora", "dino_i", 0.01, 0.004)
    facts = facts_of(home)
    assert facts.lead("dreambooth", "lora", "dino_i") == Gain(0.01, 0.006, 0.014, paired=True)
    assert facts.lead("lora", "dreambooth", "dino_i") == Gain(-0.01, -0.014, -0.006, paired=True)
    text = text_of(home)
    assert "Arm against arm" in text and "+0.010 better" in text
    pair(home, "dreambooth", "lora", "dino_i", -0.02, 0.01, ALL_SUBJECTS)
    assert facts_of(home).lead("dreambooth", "lora", "dino_i") == Gain(-0.02, -0.03, -0.01, paired=True)


def test_the_share_of_the_way_needs_both_ends(home: Path) -> None:
    assert share_of_the_way(facts_of(home), "lora", "dino_i") == pytest.approx((0.74 - 0.31) / (0.86 - 0.31))
    assert share_of_the_way(facts_of(home), "lora", "div") is None


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
    text, plain = text_of(home), plain_of(home)
    assert f"Not decided: {reason}." in text and "highest subject fidelity" not in text
    assert "Subject fidelity (DINO-I)" in text and "Prompt fidelity (CLIP-T)" in text
    assert plain["scores"]["lora"]["dino_i"] == {"absent": reason}
    assert plain["answer"]["winner"] is None
