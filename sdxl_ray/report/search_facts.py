"""The facts of a search's report: its card, its trials, and how the winner did on the final split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdxl_ray.config.search_parameters import Choice, Int, LogUniform
from sdxl_ray.config.search_space import METRICS, MetricMode
from sdxl_ray.io.records import read
from sdxl_ray.io.rows import Row
from sdxl_ray.io.search_records import SearchCard, Trial, best, finished, front, read_trials
from sdxl_ray.report.importance import importance
from sdxl_ray.report.scores import FinalScores

#: What the two models are called in the records of the final split.
DEFAULT, TUNED = "default", "tuned"


@dataclass(frozen=True)
class Searched:
    """One search as its folder records it. scores: rows of the final split; empty when it was not judged."""

    folder: Path
    card: SearchCard
    trials: tuple[Trial, ...]
    scores: tuple[Row, ...]
    images: tuple[Row, ...]

    @property
    def modes(self) -> dict[str, MetricMode]:
        """The metrics of the front: those of the space, or subject against prompt where it has one."""
        if len(self.card.space.metric) > 1:
            return self.card.space.modes
        return {name: METRICS[name] for name in ("dino_i", "clip_t")}

    @property
    def winner(self) -> Trial | None:
        """The trial behind `best.yaml`."""
        return best(self.trials, self.card.metric, self.card.mode)

    @property
    def front(self) -> list[Trial]:
        """Trials that none beats in every metric of `modes`."""
        return front(self.trials, self.modes)

    @property
    def finished(self) -> list[Trial]:
        """Trials with an artifact."""
        return finished(self.trials)

    def importance(self) -> dict[str, float] | None:
        """Shares of the parameters, or None for too few trials."""
        return importance(self.card.space, self.trials, self.card.metric, self.card.mode)

    def label(self, trial: Trial) -> str:
        """`trial 7`, or that it is the recipe as it was."""
        return f"trial {trial.number}" if trial.number else "trial 0 (default)"


def open_search(folder: Path) -> Searched:
    """Read a search's folder. Raises UserError, one line: no search, or damaged."""
    home = folder.absolute()
    card, records = SearchCard.open(home), home / "records"
    there = records.is_dir()
    rows = {name: read(records, name).to_pylist() if there else [] for name in ("scores", "pictures")}
    return Searched(home, card, tuple(read_trials(home)), tuple(rows["scores"]), tuple(rows["pictures"]))


def height(parameter: Any, value: Any) -> float | None:
    """Where a value lies between the bounds of its parameter, 0 to 1; None outside of them."""
    match parameter:
        case Choice(values=values):
            return values.index(value) / max(1, len(values) - 1) if value in values else None
        case LogUniform() | Int(log=True):
            low, high = math.log(parameter.low), math.log(parameter.high)
            place = (math.log(value) - low) / (high - low) if value and value > 0 else None
        case _:
            place = (value - parameter.low) / (parameter.high - parameter.low) if value is not None else None
    return place if place is not None and -0.02 <= place <= 1.02 else None


def ends(parameter: Any) -> tuple[tuple[float, str], ...]:
    """The bounds, or every choice, as ticks of an upright."""
    if isinstance(parameter, Choice):
        return tuple((height(parameter, value) or 0.0, _text(value)) for value in parameter.values)
    return ((-0.05, _text(parameter.low)), (1.05, _text(parameter.high)))


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def final_scores(searched: Searched) -> FinalScores:
    """Scores of the base, the default and the winner on the final split."""
    hashes: Mapping[str, tuple[str, ...]] = {DEFAULT: (), TUNED: ()}
    return FinalScores.of(searched.scores, hashes)
