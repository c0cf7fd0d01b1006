"""The gain in quality: the difference of two composites, paired, and surer than two intervals side by side."""

from __future__ import annotations

import numpy as np
import pytest

from sdxl_ray.evaluation.quality_gain import quality_gain
from sdxl_ray.evaluation.runner import EvaluationResult
from sdxl_ray.metrics.bootstrap import Terms
from sdxl_ray.metrics.quality import References, composite

PROMPTS, SEEDS, PHOTOS = 6, 4, 3


def terms(level: float, noise: float, rng: np.random.Generator) -> dict[str, Terms]:
    """Scores of one model; easy and hard prompts are the same for every model."""
    prompt_P = np.random.default_rng(0).normal(0, 0.1, (PROMPTS, 1))
    drawn_PS = level + prompt_P + rng.normal(0, noise, (PROMPTS, SEEDS))
    dino_PSR = np.repeat(drawn_PS[:, :, None], PHOTOS, axis=2)
    clip_PS = 0.5 + prompt_P + rng.normal(0, noise, (PROMPTS, SEEDS))
    return {
        "dino_i": Terms(dino_PSR, ("prompt", "seed", "photo"), PROMPTS * SEEDS),
        "clip_t": Terms(clip_PS, ("prompt", "seed"), PROMPTS * SEEDS),
    }


def evaluation(levels: dict[str, float], noise: float = 0.01) -> EvaluationResult:
    rng = np.random.default_rng(1)
    found = {model: terms(level, noise, rng) for model, level in levels.items()}
    rows = [
        {"model": model, "metric": metric, "value": of.mean}
        for model, some in found.items()
        for metric, of in some.items()
    ]
    rows.append({"model": "real", "metric": "dino_i", "value": 0.9})
    by = {("final", model, metric): of for model, some in found.items() for metric, of in some.items()}
    return EvaluationResult(rows, [], [], {}, by)


def test_the_gain_is_the_difference_of_the_composites() -> None:
    found = evaluation({"base": 0.2, "default": 0.5, "tuned": 0.6})
    gain = quality_gain(found, "final", "tuned", "default", "tiny-clip")
    assert gain is not None
    of = {m: {k: t.mean for (_, n, k), t in found.terms.items() if n == m} for m in ("base", "default", "tuned")}
    references = References(of["base"], 0.9, "tiny-clip")
    assert gain.value == pytest.approx(composite(of["tuned"], references) - composite(of["default"], references))
    assert gain.low is not None and gain.high is not None
    assert 0 < gain.low < gain.value < gain.high
    back = quality_gain(found, "final", "default", "tuned", "tiny-clip")
    assert back is not None
    assert (back.value, back.low, back.high) == pytest.approx((-gain.value, -gain.high, -gain.low))


def test_hard_prompts_cancel_out() -> None:
    gain = quality_gain(
        evaluation({"base": 0.2, "default": 0.5, "tuned": 0.53}), "final", "tuned", "default", "tiny-clip"
    )
    assert gain is not None and gain.low is not None and gain.high is not None
    assert gain.low > 0
    assert gain.high - gain.low < 0.1  # a single model's interval is about 0.2 wide: prompts differ by 0.1


def test_a_model_against_itself_gains_nothing() -> None:
    gain = quality_gain(evaluation({"base": 0.2, "tuned": 0.5}), "final", "tuned", "tuned", "tiny-clip")
    assert gain is not None
    assert (gain.value, gain.low, gain.high) == (0, 0, 0)


def test_without_base_or_photos_there_is_none() -> None:
    assert quality_gain(evaluation({"default": 0.5, "tuned": 0.6}), "final", "tuned", "default", "tiny-clip") is None
    found = evaluation({"base": 0.2, "tuned": 0.5})
    rows = [row for row in found.scores if row["model"] != "real"]
    bare = EvaluationResult(rows, [], [], {}, found.terms)
    assert quality_gain(bare, "final", "tuned", "base", "tiny-clip") is None
