"""The quality of one model minus another's, with an interval that knows they share prompts, seeds and photos."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sdxl_ray.evaluation.evaluated_models import BASE, REAL
from sdxl_ray.evaluation.runner import EvaluationResult
from sdxl_ray.metrics.bootstrap import RESAMPLES, FloatArray, Interval, Terms, ends, resampled
from sdxl_ray.metrics.quality import NEEDED, References, composite, has_quality

Key = tuple[str, str, str]


def quality_gain(
    found: EvaluationResult, split: str, model: str, against: str, clip: str, resamples: int = RESAMPLES
) -> Interval | None:
    """Difference of the composites; None where the base, the photos or a needed score is missing.

    Every resample draws the same prompts, seeds and photos for both models and for all metrics, and composes them anew.
    What both are held against (the base, the photos among themselves) is taken as it is.
    """
    known = {row["metric"]: row["value"] for row in found.scores if row["model"] == BASE and row["value"] is not None}
    ceiling = next((r["value"] for r in found.scores if (r["model"], r["metric"]) == (REAL, "dino_i")), None)
    if ceiling is None or not has_quality(clip) or not all(name in known for name in NEEDED):
        return None
    references = References(known, ceiling, clip)
    mine, other = (_of(found.terms, split, name) for name in (model, against))
    if mine.keys() != other.keys() or not all(name in mine for name in NEEDED):
        return None
    value = composite({k: t.mean for k, t in mine.items()}, references) - composite(
        {k: t.mean for k, t in other.items()}, references
    )
    gains = _composites(mine, references, resamples) - _composites(other, references, resamples)
    low, high = ends(gains)
    return Interval(value, low, high, mine[NEEDED[0]].n)


def _of(terms: Mapping[Key, Terms], split: str, model: str) -> dict[str, Terms]:
    return {metric: value for (where, name, metric), value in terms.items() if (where, name) == (split, model)}


def _composites(terms: Mapping[str, Terms], references: References, resamples: int) -> FloatArray:
    drawn: dict[str, FloatArray] = {}
    for name, of in terms.items():
        means = resampled(of, resamples=resamples)
        drawn[name] = np.full(resamples, of.mean) if means is None else means
    rows = zip(*drawn.values(), strict=True)
    # A resample with a score of nothing to compare (one seed drawn throughout, say) is none.
    return np.array(
        [
            composite(dict(zip(drawn, row, strict=True)), references) if np.isfinite(row).all() else np.nan
            for row in rows
        ]
    )
