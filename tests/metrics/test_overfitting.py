"""Overfitting is named when fidelity rises and something falls beyond noise, and not otherwise."""

from __future__ import annotations

import pytest

from sdxl_ray.metrics.overfitting import WATCHED, overfitting
from sdxl_ray.metrics.quality import Measured

STEADY = {"dino_i": 0.5, "clip_t": 0.3, "pres": 0.3, "class_kid": 1.0, "prior_loss": 0.1, "div": 0.4}
WORSE = {"clip_t": 0.2, "pres": 0.5, "class_kid": 2.0, "prior_loss": 0.2, "div": 0.2}


def evaluation(step: int, width: float = 0.02, **changes: float) -> tuple[int, dict[str, Measured]]:
    return step, {name: (value, value - width, value + width) for name, value in {**STEADY, **changes}.items()}


@pytest.mark.parametrize("metric", sorted(WATCHED))
def test_each_loss_is_named_with_its_step_and_numbers(metric: str) -> None:
    evaluations = [
        evaluation(50),
        evaluation(100, dino_i=0.6),
        evaluation(150, dino_i=0.7, **{metric: WORSE[metric]}),
        evaluation(200),
    ]
    found = overfitting(evaluations)
    assert found is not None and found.step == 150
    rise = "0.500 to 0.700" if "since step 50" in found.text else "0.600 to 0.700"
    assert rise in found.text and WATCHED[metric][1] in found.text
    assert f"({STEADY[metric]:.3f} to {WORSE[metric]:.3f})" in found.text
    assert found.text.count("(") == 2  # the rise and this loss, nothing that did not fall


@pytest.mark.parametrize(
    "last",
    [
        evaluation(100, dino_i=0.7),  # nothing is lost
        evaluation(100, dino_i=0.4, clip_t=0.1),  # all is lost: no overfitting, a run that goes wrong
        evaluation(100, dino_i=0.7, clip_t=0.4, pres=0.1, class_kid=0.5, prior_loss=0.05, div=0.6),  # all is better
        evaluation(100, 0.1, dino_i=0.7, clip_t=0.2),  # within noise
        evaluation(100, dino_i=0.7, clip_t=0.29),
    ],
)
def test_what_is_not_overfitting(last: tuple[int, dict[str, Measured]]) -> None:
    assert overfitting([evaluation(50), last]) is None


def test_it_takes_two_looks_and_bounds() -> None:
    assert overfitting([]) is None
    assert overfitting([evaluation(50, dino_i=0.9, clip_t=0.0)]) is None
    step, measured = evaluation(100, dino_i=0.9, clip_t=0.1)
    assert overfitting([evaluation(50), (step, {**measured, "clip_t": (0.1, None, None)})]) is None


def test_a_slow_drift_is_found_against_an_early_look() -> None:
    evaluations = [evaluation(50 * k, dino_i=0.5 + 0.02 * k, clip_t=0.3 - 0.012 * k) for k in range(1, 8)]
    found = overfitting(evaluations)
    assert found is not None and 100 < found.step < 350 and "since step 50" in found.text
