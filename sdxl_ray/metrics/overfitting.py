"""Overfitting, found in the scores of a run: the subject is drawn more alike while something else is lost.

    found = overfitting([(100, {"dino_i": (0.61, 0.55, 0.67), …}), (200, …)])
    found and found.text      # "step 200: … "

Subject fidelity alone rises for as long as a model copies its photos (arXiv 2208.12242, section 4.3), so a rise counts
against what fell since: prompts that are obeyed less, a class that drifts or looks like the subject, images that are
alike. A fall counts beyond noise only: the interval of the difference leaves zero out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sdxl_ray.metrics.quality import Measured

#: Metric -> (whether more is better, what is lost when it gets worse).
WATCHED: dict[str, tuple[bool, str]] = {
    "clip_t": (True, "prompt fidelity fell"),
    "pres": (False, "the subject leaks into its class"),
    "class_kid": (False, "class images drifted from the base's"),
    "prior_loss": (False, "the class is denoised worse"),
    "div": (True, "diversity fell"),
}
FIDELITY = "dino_i"


@dataclass(frozen=True)
class Overfitting:
    """The first step where it showed, and one sentence that says what rose and what was lost."""

    step: int
    text: str


def overfitting(evaluations: Sequence[tuple[int, Mapping[str, Measured]]]) -> Overfitting | None:
    """The first evaluation that has more subject fidelity than an earlier one and, beyond noise, less of something
    watched.

    evaluations: (step, metric -> (value, low, high)) in the order of steps, of the model in training only: every first
    evaluation has lost something against the base. Intervals are taken as independent, though evaluations share
    prompts, seeds and photos: that is wider than the truth, so what is named is rather named late than wrongly.
    """
    for place, (step, now) in enumerate(evaluations):
        found = [
            (excess, earlier, metric)
            for earlier, before in evaluations[:place]
            if now[FIDELITY][0] > before[FIDELITY][0]
            for metric, (more_is_better, _) in WATCHED.items()
            if (excess := _loss(before.get(metric), now.get(metric), more_is_better)) > 0
        ]
        if found:
            _, earlier, _ = max(found)
            before = dict(evaluations)[earlier]
            lost = [metric for _, since, metric in sorted(found, reverse=True) if since == earlier]
            reported = "; ".join(f"{WATCHED[name][1]} ({_change(before[name], now[name])})" for name in lost)
            rise = _change(before[FIDELITY], now[FIDELITY])
            return Overfitting(step, f"since step {earlier} subject fidelity rose ({rise}), but {reported}")
    return None


def _loss(before: Measured | None, now: Measured | None, more_is_better: bool) -> float:
    """How much was lost beyond the interval of the difference, as a share of its half width; 0 and below: nothing."""
    if before is None or now is None or None in (*before, *now):
        return 0.0
    sign = 1.0 if more_is_better else -1.0
    lost = sign * (before[0] - now[0])
    # The sides that face each other: below the earlier score and above the later one where more is better.
    near, far = (1, 2) if more_is_better else (2, 1)
    noise = math.hypot(_side(before, near), _side(now, far))
    return (lost - noise) / noise if noise > 0 else lost


def _side(score: Measured, place: int) -> float:
    bound = score[place]
    assert bound is not None
    return abs(score[0] - bound)


def _change(before: Measured, now: Measured) -> str:
    return f"{before[0]:.3f} to {now[0]:.3f}"
