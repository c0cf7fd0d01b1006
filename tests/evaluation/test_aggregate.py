"""Scores over trainings and subjects: plain means, intervals that know what belongs together, paired differences."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from sdxl_ray.evaluation.aggregate import Pool, pooled, stacked
from sdxl_ray.evaluation.runner import EvaluationResult
from sdxl_ray.io.records import ALL_SUBJECTS
from sdxl_ray.metrics.bootstrap import Terms, interval

RNG = np.random.default_rng(3)
UNITS = ("prompt", "seed", "photo")


def _terms(level: float, *, photos: int = 3) -> Terms:
    return Terms(level + 0.1 * RNG.normal(size=(4, 2, photos)), UNITS, 8)


def test_trainings_are_one_more_unit() -> None:
    trainings = [_terms(level) for level in (0.2, 0.5, 0.8)]
    joined = stacked(trainings)
    assert joined.units == ("training", *UNITS)
    assert joined.n == 24
    assert joined.mean == pytest.approx(float(np.mean([terms.values.mean() for terms in trainings])), abs=1e-12)
    assert stacked(trainings[:1]) is trainings[0]
    found, alone = interval(joined), interval(trainings[0])
    assert found.low is not None
    assert found.high is not None
    assert alone.low is not None
    assert alone.high is not None
    assert found.high - found.low > 2 * (alone.high - alone.low)  # three trainings that differ say less than one set


def test_over_subjects_each_counts_the_same_and_the_interval_is_by_hand() -> None:
    """Two subjects of one value each: a resample is one of three known means."""
    subjects = [Terms(np.full((3, 2, photos), value), UNITS, 6) for value, photos in ((0.0, 2), (1.0, 5))]
    found = pooled(subjects, resamples=4000)
    assert (found.value, found.low, found.high, found.n) == (0.5, 0.0, 1.0, 12)
    middle = pooled([*subjects, *subjects], resamples=4000)
    assert middle.low is not None
    assert middle.high is not None
    assert middle.value == 0.5
    assert {round(4 * middle.low), round(4 * middle.high)} <= {0, 1, 3, 4}
    assert pooled(subjects[:1]) == interval(subjects[0])


def test_the_hierarchical_interval_covers_the_truth() -> None:
    rng, covered = np.random.default_rng(5), 0
    for _ in range(60):
        subjects = [
            Terms(rng.normal() + rng.normal(size=(6, 1, 4)) + 0.3 * rng.normal(size=(6, 3, 4)), UNITS, 18)
            for _ in range(12)
        ]
        found = pooled(subjects, resamples=200)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0 <= found.high
    assert covered >= 51


def test_a_subject_that_cannot_be_drawn_again_still_counts() -> None:
    found = pooled([_terms(0.2), Terms(np.full((1, 1, 1), 0.6), UNITS, 1)])
    assert found.value == pytest.approx(0.4, abs=0.05)
    assert found.low is not None


def test_draws_that_hold_no_pair_are_left_out() -> None:
    """Two images make one pair: half of the draws have none, in both subjects alike, as they share their seeds."""
    pairs = [Terms(np.array([[np.nan, value], [value, np.nan]]), ("picture", "picture"), 2) for value in (0.2, 0.4)]
    found = pooled(pairs)
    assert found.value == pytest.approx(0.3)
    assert (found.low, found.high) == pytest.approx((0.2, 0.4))


def _evaluation(subject: str, levels: dict[str, float]) -> EvaluationResult:
    shared = 0.3 * RNG.normal(size=(4, 2, 3))
    terms = {("final", model, "dino_i"): Terms(shared + level, UNITS, 8) for model, level in levels.items()}
    scores = [
        {"step": 0, "model": model, "subject": subject, "metric": "dino_i", "value": 0.0, "low": None, "high": None,
         "n": 8, "encoder": "e", "preprocessing": "p", "split": "final", "artifact": model, "seconds": 1.5}
        for model in levels
    ]  # fmt: skip
    return EvaluationResult(scores, [], [], {}, terms)


@pytest.fixture
def pool() -> Pool:
    found = {
        "robot": _evaluation("robot", {"base": 0.1, "lora (1)": 0.5, "lora (2)": 0.7, "full": 0.9}),
        "frog": _evaluation("frog", {"base": 0.3, "lora (1)": 0.6, "lora (2)": 0.6, "full": 0.7}),
    }
    return Pool(found, {"lora": ["lora (1)", "lora (2)"], "full": ["full"]}, resamples=200)


def _at(rows: list[dict[str, Any]], **wanted: str) -> dict[str, Any]:
    (row,) = (row for row in rows if all(row[key] == value for key, value in wanted.items()))
    return row


def test_rows_by_subject_and_over_all(pool: Pool) -> None:
    rows = pool.scores()
    seen = {(row["model"], row["subject"], row["metric"]) for row in rows}
    subjects = ("robot", "frog", ALL_SUBJECTS)
    assert seen == {
        *product(("base", "lora", "full"), subjects, ("dino_i",)),
        *product(("lora", "full"), subjects, ("dino_i_gain",)),
    }
    means = {key: terms.mean for evaluation in pool.found.values() for key, terms in evaluation.terms.items()}
    assert len(means) == 4
    robot = pool.found["robot"].terms
    by_hand = np.mean([robot["final", model, "dino_i"].values.mean() for model in ("lora (1)", "lora (2)")])
    assert _at(rows, model="lora", subject="robot", metric="dino_i")["value"] == pytest.approx(by_hand, abs=1e-12)
    assert _at(rows, model="lora", subject="robot", metric="dino_i")["seconds"] == 3.0
    gain = _at(rows, model="lora", subject=ALL_SUBJECTS, metric="dino_i_gain")
    assert gain["value"] == pytest.approx((0.5 + 0.3) / 2, abs=1e-12)
    assert gain["low"] > 0.25  # paired: what the models share is not in it
    assert gain["n"] == 32


def test_arms_are_compared_in_pairs(pool: Pool) -> None:
    rows = pool.differences()
    pairs = {(row["model"], row["against"]) for row in rows}
    assert pairs == {("lora", "base"), ("full", "base")}  # two trainings against one arm's one are no pairs
    again = Pool(pool.found, {"first": ["lora (1)"], "full": ["full"]}, resamples=200).differences()
    robot = _at(again, model="full", against="first", subject="robot")
    assert robot["value"] == pytest.approx(0.4, abs=1e-12)
    assert (robot["low"], robot["high"]) == pytest.approx((0.4, 0.4), abs=1e-9)
