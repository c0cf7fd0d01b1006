"""The facts of a report: what a comparison's records say, arm by arm, and why anything is missing.

    facts = gather(open_comparison("runs/demo-comparison"))
    facts.score("lora", "dino_i")      # Score, or Absent with the reason
    facts.gain("lora", "dino_i")       # the same less the base

Sections turn these into tables and plots; nothing else reads a record.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdxl_ray.io.rows import Row
from sdxl_ray.report.metrics import (
    BASE,
    FIDELITY,
    METRICS,
    REFERENCES,
    Absent,
    Gain,
    Score,
    difference,
    mean,
    metric_of,
)
from sdxl_ray.report.scores import FinalScores
from sdxl_ray.report.source import ArmCard, ComparisonCard, RunSource, Source

LORA, DREAMBOOTH, BOTH, NO_PRIOR = "LoRA", "DreamBooth", "DreamBooth + LoRA", "DreamBooth without prior"
MERGE = "merge"


@dataclass(frozen=True)
class Cost:
    """What an arm took, over its runs: counts and bytes are the largest, seconds the mean.

    step_s: median seconds of an optimizer step. train_s: all steps. whole_s: preparing, training, looking and saving.
    """

    trainable: int | Absent
    artifact_bytes: int | Absent
    peak_bytes: int | Absent
    step_s: float | Absent
    train_s: float | Absent
    whole_s: float | Absent
    prepare_s: float | Absent
    samples_per_s: float | Absent
    steps: int | Absent
    workers: int | Absent


@dataclass(frozen=True)
class Curves:
    """What one run went through. loss, validation: (step, value); quality: metric -> (step, score).

    kept: the step whose weights are the artifact, where the run's own scores chose it; stopped: whether they ended it
    early; overfitting: the step where it showed, and what was lost.
    """

    label: str
    loss: tuple[tuple[int, float], ...]
    validation: tuple[tuple[int, float], ...]
    quality: dict[str, tuple[tuple[int, Score], ...]]
    kept: int | None = None
    stopped: bool = False
    overfitting: tuple[int, str] | None = None


@dataclass(frozen=True)
class ArmFacts:
    """One way of tuning, as it was trained. method: the method's name, from the recipe, its first run's own."""

    name: str
    method: str
    recipe: dict[str, Any]
    photos: int | Absent
    cost: Cost
    curves: tuple[Curves, ...]
    hashes: tuple[str, ...]
    runs: tuple[str, ...]

    def setting(self, path: str) -> Any:
        """A dotted setting of the recipe, None where it is not set."""
        here: Any = self.recipe
        for key in path.split("."):
            here = here.get(key) if isinstance(here, Mapping) else None
        return here


@dataclass(frozen=True)
class ReportImage:
    """One image of the folder. path: None where the file is not there."""

    model: str
    subject: str
    prompt: str
    seed: int
    purpose: str
    split: str
    relative: str
    path: Path | None
    seconds: float | None = None


@dataclass(frozen=True)
class ComparisonFacts:
    """A comparison, gathered. subjects and metrics: those that were scored, in their order. requests: of load tests."""

    card: ComparisonCard
    folder: Path
    arms: tuple[ArmFacts, ...]
    scores: FinalScores
    images: tuple[ReportImage, ...]
    requests: tuple[Row, ...]
    warnings: tuple[str, ...] = field(default=())

    @property
    def subjects(self) -> tuple[str, ...]:
        return self.scores.subjects

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics with at least one final score of a model."""
        return self.scores.metrics

    @property
    def shown(self) -> tuple[str, ...]:
        """The same, and those that could not be scored: a table says why."""
        known = {*self.metrics, *self.scores.missing} if self.metrics else set()
        return (*(name for name in METRICS if name in known), *(n for n in self.metrics if n not in METRICS))

    def arm(self, name: str) -> ArmFacts:
        return next(arm for arm in self.arms if arm.name == name)

    def of_method(self, method: str) -> ArmFacts | None:
        """The arm of that method that resembles the subject most; the first where nothing was scored."""
        found = [arm for arm in self.arms if arm.method == method]
        return max(found, key=lambda arm: value_of(self.score(arm.name, main_metric(self))), default=None)

    def score(self, model: str, metric: str, subject: str | None = None) -> Score | Absent:
        """The final score of an arm, the base or a reference; over all subjects unless one is named."""
        return self.scores.final(model, metric, subject)

    def gain(self, model: str, metric: str) -> Gain | Absent:
        """How far a model is above the base: the recorded paired difference, else from the two intervals."""
        paired = self.scores.gain(model, metric)
        if paired is not None:
            return paired
        subjects = self.scores.subjects_of(model, metric)
        above, below = self.score(model, metric), self.scores.final(BASE, metric, subjects=subjects)
        if isinstance(above, Score) and metric_of(metric).from_base:
            return Gain(above.value, above.low, above.high, paired=True)
        for score in (above, below):
            if isinstance(score, Absent):
                return score
        assert isinstance(above, Score) and isinstance(below, Score)
        return difference(above, below)

    def lead(self, model: str, against: str, metric: str) -> Gain | Absent:
        """How far an arm is above another one: the recorded paired difference, else from the two intervals."""
        paired = self.scores.pair(model, against, metric)
        if paired is not None:
            return paired
        above, below = self.score(model, metric), self.score(against, metric)
        for score in (above, below):
            if isinstance(score, Absent):
                return score
        assert isinstance(above, Score) and isinstance(below, Score)
        return difference(above, below)


def main_metric(facts: ComparisonFacts) -> str:
    """The metric that decides: the first subject fidelity that was scored; the first at all where none was."""
    return next((name for name in FIDELITY if name in facts.metrics), FIDELITY[0])


def value_of(score: Score | Absent) -> float:
    """For sorting: what is absent comes last."""
    return score.value if isinstance(score, Score) else float("-inf")


def gather(source: Source) -> ComparisonFacts:
    """Everything a report shows. Reads no image and no weight."""
    arms = tuple(_arm(name, card, source) for name, card in source.card.arms.items())
    hashes = {arm.name: arm.hashes for arm in arms}
    scores = FinalScores.of(source.tables["scores"], hashes, source.tables["differences"], source.card.absent)
    images = tuple(_image(source.folder, row) for row in source.tables["pictures"])
    requests = tuple(source.tables["requests"])
    return ComparisonFacts(source.card, source.folder, arms, scores, images, requests, tuple(_warnings(source, arms)))


def method_of(recipe: Mapping[str, Any]) -> str:
    """The name of a recipe's method: what trains, and what it sees."""
    kind = (recipe.get("tuning") or {}).get("kind")
    prior = (recipe.get("data") or {}).get("prior") is not None
    if kind == "lora":
        return BOTH if prior else LORA
    if kind == "full":
        return DREAMBOOTH if prior else NO_PRIOR
    return "unknown"


def _arm(name: str, card: ArmCard, source: Source) -> ArmFacts:
    runs = source.runs[name]
    made = (run.recipe or (run.artifact.manifest.recipe if run.artifact is not None else {}) for run in runs.values())
    recipe = next(filter(None, (*made, card.recipe)), {})
    curves = tuple(_curves(name, label, run, source.tables["scores"]) for label, run in runs.items())
    photos = _least([run.photos for run in runs.values()], _why(runs, "the run's list of training images"))
    hashes = tuple(card.hashes.values()) or tuple(r.artifact.hash for r in runs.values() if r.artifact is not None)
    method = MERGE if any(_is_merge(run) for run in runs.values()) else method_of(recipe)
    return ArmFacts(name, method, recipe, photos, _cost(runs), curves, hashes, tuple(card.runs.values()))


def _is_merge(run: RunSource) -> bool:
    origin = run.artifact.manifest.origin if run.artifact is not None else None
    return origin is not None and origin.get("command") == "merge"


def _cost(runs: Mapping[str, RunSource]) -> Cost:
    def over(pick: Callable[[RunSource], float | None], join: Callable[[Iterable[float]], float], what: str) -> Any:
        found = [value for run in runs.values() if (value := pick(run)) is not None]
        return join(found) if found else Absent(_why(runs, what))

    def column(name: str, join: Callable[[Sequence[float]], float]) -> Callable[[RunSource], float | None]:
        def pick(run: RunSource) -> float | None:
            values = [row[name] for row in run.tables.get("steps", []) if row.get(name) is not None]
            return join(values) if values else None

        return pick

    def whole(run: RunSource) -> float | None:
        if "train_s" not in run.summary or run.summary.get("resumed_at"):
            return None  # a run that went on only knows the time of its last stretch
        return float(run.summary["train_s"]) + float(run.summary.get("prepare_s") or 0)

    return Cost(
        trainable=over(lambda run: run.summary.get("trainable"), max, "the run's summary"),
        artifact_bytes=over(lambda run: run.artifact_bytes, max, "the run's artifact"),
        peak_bytes=over(column("peak_bytes", max), max, "peak memory of its steps"),
        step_s=over(column("seconds", statistics.median), statistics.median, "seconds of its steps"),
        train_s=over(column("seconds", sum), statistics.fmean, "seconds of its steps"),
        whole_s=over(whole, statistics.fmean, "the time of an uninterrupted run"),
        prepare_s=over(lambda run: run.summary.get("prepare_s"), statistics.fmean, "the run's summary"),
        samples_per_s=over(column("samples_per_s", statistics.median), statistics.median, "samples/s of its steps"),
        steps=over(column("step", max), max, "its steps"),
        workers=over(column("workers", max), max, "workers of its steps"),
    )


def _why(runs: Mapping[str, RunSource], what: str) -> str:
    gone = [run.why for run in runs.values() if run.folder is None]
    return gone[0] if gone else f"{what} is not recorded"


def _least(values: Iterable[int | None], why: str) -> int | Absent:
    found = [value for value in values if value is not None]
    return min(found) if found else Absent(why)


def _curves(arm: str, label: str, run: RunSource, shared: Sequence[Row]) -> Curves:
    rows = run.tables.get("scores") or [row for row in shared if row["model"] == arm]
    evaluations = [row for row in rows if row["split"] == "validation" and row["model"] not in REFERENCES]
    own = {(row["metric"], row["step"]) for row in evaluations if row["model"] != BASE}
    quality: dict[str, dict[int, list[Score]]] = {}
    for row in evaluations:
        score = FinalScores.score_of(row)
        # Before its first step the model is the base, so the base's row stands in where the model has none.
        if score is not None and (row["model"] != BASE or (row["metric"], row["step"]) not in own):
            quality.setdefault(row["metric"], {}).setdefault(row["step"], []).append(score)
    return Curves(
        label,
        loss=tuple((row["step"], row["loss"]) for row in run.tables.get("steps", [])),
        validation=tuple((row["step"], row["loss"]) for row in run.tables.get("validation", [])),
        quality={name: tuple((step, mean(same)) for step, same in sorted(by.items())) for name, by in quality.items()},
        kept=run.summary.get("exported_step") if run.summary.get("best_quality") is not None else None,
        stopped=bool(run.summary.get("stopped_early")),
        overfitting=(found["step"], found["text"]) if (found := run.summary.get("overfitting")) else None,
    )


def _image(folder: Path, row: Row) -> ReportImage:
    path = (folder / row["path"]).resolve()
    inside = folder.resolve() in path.parents
    names = ("model", "subject", "prompt", "seed", "purpose", "split")
    known = {name: row[name] for name in names}
    return ReportImage(**known, relative=row["path"], path=path if inside else None, seconds=row["seconds"])


def _warnings(source: Source, arms: Sequence[ArmFacts]) -> Iterable[str]:
    for arm in arms:
        yield from _reused(source, arm)
        scored = source.card.arms[arm.name].hashes
        for label, run in source.runs[arm.name].items():
            if label in scored and run.artifact is not None and run.artifact.hash != scored[label]:
                yield f"the artifact of {arm.name} has changed since it was scored: its scores are of the one before"


def _reused(source: Source, arm: ArmFacts) -> Iterable[str]:
    """Runs that were trained before, under a layout that the experiment does not ask for: their costs are of that."""
    asked = source.card.arms[arm.name].recipe.get("parallel") or {}
    for run in source.runs[arm.name].values():
        own = run.recipe.get("parallel") or {}
        other = [f"parallel.{key} is {own[key]!r}" for key in asked if own.get(key, asked[key]) != asked[key]]
        if other:
            yield f"{arm.name}: {', '.join(other)} in run {run.name}, trained before; its time and memory are of that"
