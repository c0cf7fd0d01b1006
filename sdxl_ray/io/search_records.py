"""A search as it lies on disk: its card and its trials, in the order they were begun.

    <storage>/<name>/
      search.json          the card: space, first recipe, and how winner and default were judged in the end
      records/             tables `trials` and `trial_scores`; after the end `scores` and `images` of the final split
      best.yaml            the best recipe, whole: `sdxl-ray train` takes it
      trial-000/ ...       ordinary run folders; trial 0 is the recipe as it was

Everything that is known of a search is in these rows, so a killed search resumes from them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from sdxl_ray.config.schema_errors import first_problem
from sdxl_ray.config.search_space import METRICS, MetricMode, Space
from sdxl_ray.errors import UserError
from sdxl_ray.io.atomic import write_text
from sdxl_ray.io.records import Recorder, read

CARD = "search.json"
BEST = "best.yaml"
#: Of `Trial.state`. A trial that is "running" while no search runs was interrupted, and resumes with the search.
TrialState = Literal["running", "finished", "stopped", "cut", "failed"]
ENDED: frozenset[TrialState] = frozenset({"finished", "stopped", "failed"})


@dataclass(frozen=True)
class TrialScores:
    """What a trial scored at a step; at_s: seconds of the search's clock."""

    step: int
    metrics: dict[str, float]
    at_s: float


@dataclass
class Trial:
    """One trial as far as it got. parameters: what it changes, for trial 0 the recipe's own values.

    kept: step of the artifact, which may be an earlier one than the last; None before the trial has finished.
    """

    number: int
    parameters: dict[str, Any]
    steps: int
    run: str
    state: TrialState = "running"
    evaluations: list[TrialScores] = field(default_factory=list)
    seconds: float = 0.0
    ended_s: float = 0.0
    error: str = ""
    kept: int | None = None

    @property
    def step(self) -> int:
        """Of its last evaluation."""
        return self.evaluations[-1].step if self.evaluations else 0

    @property
    def metrics(self) -> dict[str, float]:
        """Of its artifact; while there is none, of its last evaluation."""
        kept = [evaluation.metrics for evaluation in self.evaluations if evaluation.step == self.kept]
        return kept[0] if kept else self.evaluations[-1].metrics if self.evaluations else {}

    def score(self, metric: str) -> float | None:
        """One of `metrics`, None before there is any."""
        return self.metrics.get(metric)

    def row(self) -> dict[str, Any]:
        """As a row of the table `trials`."""
        return {
            "trial": self.number, "parameters": json.dumps(self.parameters), "state": self.state, "step": self.step,
            "steps": self.steps, "seconds": self.seconds, "ended_s": self.ended_s, "error": self.error or None,
            "run": self.run, "kept": self.kept,
        }  # fmt: skip


class FinalVerdict(BaseModel):
    """How the winner did against the default on the final split; differences: rows of paired intervals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    winner: int
    beats_default: bool
    sentence: str
    differences: list[dict[str, Any]] = []


class SearchCard(BaseModel):
    """`search.json`. recipe: the first trial's, whole; environment: where it ran; verdict: None until the end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: str
    space: Space
    recipe: dict[str, Any]
    environment: dict[str, Any] = {}
    verdict: FinalVerdict | None = None

    @property
    def metric(self) -> str:
        """What names one winner: the space's metric, or the composite where there are several."""
        return self.space.metric[0] if len(self.space.metric) == 1 else "quality"

    @property
    def mode(self) -> MetricMode:
        """The way that is good for it."""
        return self.space.modes.get(self.metric) or METRICS[self.metric]

    def write(self, folder: Path) -> None:
        """Write the card."""
        write_text(folder / CARD, self.model_dump_json(indent=1, exclude_unset=False) + "\n")

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a card. Raises UserError, one line: not a search, or damaged."""
        path = folder / CARD
        plain: Any = None
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            return cls.model_validate(plain)
        except FileNotFoundError:
            raise UserError(f"{str(folder)!r} is not a search (no {CARD}): give <storage>/<name> of a search") from None
        except ValidationError as error:
            raise UserError(f"{str(path)!r}: {first_problem(error, cls, plain)}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{str(path)!r} cannot be read: {error}") from None


def read_trials(folder: Path) -> list[Trial]:
    """Every trial of a search's folder, in order."""
    records = folder / "records"
    if not records.is_dir():
        return []
    trials = {
        row["trial"]: Trial(
            row["trial"], json.loads(row["parameters"]), row["steps"], row["run"], row["state"], [], row["seconds"],
            row["ended_s"], row["error"] or "", row["kept"],
        )
        for row in read(records, "trials").to_pylist()
    }  # fmt: skip
    evaluations: dict[tuple[int, int], TrialScores] = {}
    for row in read(records, "trial_scores").to_pylist():
        evaluation = evaluations.setdefault((row["trial"], row["step"]), TrialScores(row["step"], {}, row["at_s"]))
        evaluation.metrics[row["metric"]] = row["value"]
    for (number, _), evaluation in sorted(evaluations.items()):
        if number in trials:
            trials[number].evaluations.append(evaluation)
    return list(trials.values())


def write_trial(recorder: Recorder, trial: Trial, evaluation: TrialScores | None = None) -> None:
    """Write a trial's row, and those of an evaluation, and let them reach the disk."""
    if evaluation is not None:
        for metric, value in evaluation.metrics.items():
            row = {"trial": trial.number, "step": evaluation.step, "metric": metric, "value": value}
            recorder.write("trial_scores", {**row, "at_s": evaluation.at_s})
    recorder.write("trials", trial.row())
    recorder.flush()


def better(mode: MetricMode, one: float, other: float) -> bool:
    """Whether `one` is better than `other`."""
    return one > other if mode == "max" else one < other


def best(trials: Sequence[Trial], metric: str, mode: MetricMode) -> Trial | None:
    """The finished trial with the best last score; of equals the first, so the default stays where nothing beats it."""
    found: Trial | None = None
    for trial in finished(trials):
        score = trial.score(metric)
        if score is not None and (found is None or better(mode, score, found.metrics[metric])):
            found = trial
    return found


def front(trials: Sequence[Trial], modes: Mapping[str, MetricMode]) -> list[Trial]:
    """The finished trials that no other one beats in every metric."""
    known = [trial for trial in finished(trials) if all(trial.score(name) is not None for name in modes)]
    return [trial for trial in known if not any(_dominates(other, trial, modes) for other in known)]


def finished(trials: Sequence[Trial]) -> list[Trial]:
    """Those that trained to their end: they have an artifact."""
    return [trial for trial in trials if trial.state == "finished"]


def _dominates(one: Trial, other: Trial, modes: Mapping[str, MetricMode]) -> bool:
    pairs = [(mode, one.metrics[name], other.metrics[name]) for name, mode in modes.items()]
    return any(better(mode, a, b) for mode, a, b in pairs) and not any(better(mode, b, a) for mode, a, b in pairs)


def progress(trials: Sequence[Trial], metric: str, mode: MetricMode) -> list[tuple[float, int, float]]:
    """(seconds, training steps, best so far) whenever a finished trial's artifact was better, on the search's clock.

    A trial counts at its last evaluation: until then it is unknown what it will keep. Steps are those that all trials
    together had taken by then.
    """
    evaluations = sorted(
        ((evaluation.at_s, trial.number, evaluation) for trial in trials for evaluation in trial.evaluations),
        key=lambda x: x[:2],
    )
    ends = {trial.number: trial for trial in finished(trials)}
    taken, points, top = dict[int, int](), list[tuple[float, int, float]](), math.nan
    for at_s, number, evaluation in evaluations:
        taken[number] = evaluation.step
        trial = ends.get(number)
        value = trial.score(metric) if trial is not None and trial.step == evaluation.step else None
        if value is not None and (math.isnan(top) or better(mode, value, top)):
            top = value
            points.append((at_s, sum(taken.values()), top))
    return points


def steps_taken(trials: Sequence[Trial]) -> int:
    """Training steps of all trials, as of their last evaluations."""
    return sum(trial.step for trial in trials)


def steps_committed(trials: Sequence[Trial]) -> int:
    """Training steps that all trials have taken, and those that the open ones may still take."""
    return sum(trial.step if trial.state in ENDED else trial.steps for trial in trials)
