"""What is scored: the name, the direction and the meaning of every metric, and numbers with their intervals.

A score is a value with a bootstrap interval as the evaluator recorded it. Nothing is computed from images here; what
is derived from several scores (a mean over subjects, a difference to the base) says how.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: A row of this metric holds the paired difference to the base: same prompts, same seeds, resampled together.
GAIN = "_gain"


@dataclass(frozen=True)
class Metric:
    """better: which way is good. visible: a difference that people see (arXiv 2208.12242's figures), None: unknown.

    from_base: the score is itself a distance to the base, whose own is 0.
    """

    name: str
    title: str
    better: Literal["higher", "lower"]
    short: str
    meaning: str
    visible: float | None = None
    digits: int = 3
    from_base: bool = False

    @property
    def words(self) -> str:
        """The title in the middle of a sentence."""
        return self.title.partition(" (")[0].lower()


#: In the order that tables and plots show them.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "dino_i", "Subject fidelity (DINO-I)", "higher", "DINO-I",
            "mean cosine of the identity encoder between generated images and held-out photos", 0.1,
        ),
        Metric(
            "clip_i", "Subject fidelity (CLIP-I)", "higher", "CLIP-I",
            "the same with CLIP's image encoder, which looks at kind and colour more than at identity",
        ),
        Metric(
            "clip_t", "Prompt fidelity (CLIP-T)", "higher", "CLIP-T",
            "mean cosine of CLIP between an image and its prompt; of real photos, to the plain words for their class, "
            "which a subject that looks unlike its class cannot fit", 0.05,
        ),
        Metric(
            "pres", "Leak into the class (PRES)", "lower", "PRES",
            "how much plain class images look like the subject; the base's value is the one to keep",
        ),
        Metric(
            "class_kid", "Class drift (KID)", "lower", "KID",
            "distance between the model's and the base's class images in the encoder's features", digits=4,
            from_base=True,
        ),
        Metric(
            "prior_loss", "Class denoising loss", "lower", "prior loss",
            "denoising loss on class images at fixed noise: it rises when the class is forgotten", digits=4,
        ),
        Metric(
            "div", "Diversity (DIV)", "higher", "DIV",
            "1 - mean cosine of patch features between images of one prompt at different seeds",
        ),
    )
}  # fmt: skip

#: Subject fidelity: what decides, the first that was scored. Nothing else may.
FIDELITY = ("dino_i", "clip_i")

#: The composite that chooses checkpoints, trials and the winner (`sdxl_ray.metrics.quality`). Its parts are columns
#: of the tables, it is not.
QUALITY = Metric(
    "quality", "Quality", "higher", "quality",
    "how much of the subject was learnt, times the prompt fidelity and the class that were kept",
)  # fmt: skip

#: Rows that give the numbers meaning, by the name of their model: held-out photos against each other, and another
#: subject of the same class against them.
REFERENCES = {
    "real": "real photos (ceiling)",
    "other": "another of the class (floor)",
}
BASE = "base"


def metric_of(name: str) -> Metric:
    """The metric of that name; one that is not known yet is shown under its own name."""
    return (QUALITY if name == QUALITY.name else METRICS.get(name)) or Metric(
        name, name, "higher", name, "recorded under this name"
    )


@dataclass(frozen=True)
class Absent:
    """A number that is not there, and why. It is shown as this, and never estimated."""

    reason: str


@dataclass(frozen=True)
class Score:
    """A value in [low, high]; n: what it is a mean of (images, or pairs). subjects: how many were averaged."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    encoder: str | None = None
    preprocessing: str | None = None
    step: int = 0
    subjects: int = 1

    @property
    def bounded(self) -> tuple[float, float] | None:
        """The interval, when one was recorded."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Gain:
    """How far a model is above another one (negative: below), with the interval of the difference.

    paired: whether the same prompts and seeds were resampled together. If not, the two intervals are combined as if
    independent, which is wider than the truth for models that share their seeds.
    """

    value: float
    low: float | None
    high: float | None
    paired: bool

    @property
    def reversed(self) -> Gain:
        """How far the other one is above."""
        low = None if self.high is None else -self.high
        high = None if self.low is None else -self.low
        return Gain(-self.value, low, high, self.paired)

    def direction(self, better: Literal["higher", "lower"]) -> Literal["better", "worse", "even", "unknown"]:
        """Whether the interval leaves zero out, and on which side."""
        if self.low is None or self.high is None:
            return "unknown"
        if self.low <= 0 <= self.high:
            return "even"
        return "better" if (self.low > 0) == (better == "higher") else "worse"


def mean(scores: Sequence[Score]) -> Score:
    """The mean over subjects that were scored apart; compare's own records hold joined scores, which are used first.

    Its interval combines theirs as independent: each side's root of summed squares.
    """
    if len(scores) == 1:
        return scores[0]
    count = len(scores)
    value = sum(score.value for score in scores) / count
    spans = [(score.value, bounds) for score in scores if (bounds := score.bounded) is not None]
    low = high = None
    if len(spans) == count:
        low = value - math.hypot(*(v - bounds[0] for v, bounds in spans)) / count
        high = value + math.hypot(*(bounds[1] - v for v, bounds in spans)) / count
    n = sum(score.n or 0 for score in scores) or None
    first = scores[0]
    return Score(value, low, high, n, first.encoder, first.preprocessing, max(s.step for s in scores), count)


def difference(above: Score, below: Score) -> Gain:
    """The difference of two independent scores."""
    value = above.value - below.value
    a, b = above.bounded, below.bounded
    if a is None or b is None:
        return Gain(value, None, None, paired=False)
    low = value - math.hypot(above.value - a[0], b[1] - below.value)
    high = value + math.hypot(a[1] - above.value, below.value - b[0])
    return Gain(value, low, high, paired=False)
