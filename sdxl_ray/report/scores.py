"""The `scores` table as a report asks it: final scores by model and metric, over one subject or all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from sdxl_ray.report.metrics import BASE, GAIN, METRICS, REFERENCES, Absent, Gain, Score, mean
from sdxl_ray.report.source import Row

#: The split that neither chose a checkpoint nor a setting: the only one that decides anything here.
FINAL = "final"
#: Splits `final@8`: the final prompts drawn with another number of denoising steps.
DRAWN_WITH = f"{FINAL}@"

_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Scores:
    """Final scores by (model, metric, subject), and the same for other numbers of denoising steps.

    checkpoints: (model, step, metric) -> score, of models whose final score was taken at more than one step.
    """

    by: dict[tuple[str, str, str], Score]
    gains: dict[tuple[str, str, str], Score]
    drawn: dict[tuple[str, str, int], Score]
    checkpoints: dict[tuple[str, int, str], Score]
    broken: dict[tuple[str, str], str]

    @classmethod
    def of(cls, rows: Iterable[Row], hashes: Mapping[str, Sequence[str]]) -> Self:
        """From records, of the base, the references and the arms in `hashes` alone.

        hashes: of each arm's artifacts, which tell its own scores from those of other checkpoints.
        """
        known = {BASE, *REFERENCES, *hashes}
        rows = [row for row in rows if row["model"] in known]
        final = [row for row in rows if row["split"] == FINAL]
        chosen: dict[tuple[str, str, str], Row] = {}
        for row in final:  # by ascending step: the last one counts, unless an earlier one is the artifact's
            key = (row["model"], row["metric"], row["subject"])
            if key not in chosen or _own(row, hashes) >= _own(chosen[key], hashes):
                chosen[key] = row
        read = {key: cls.score_of(row) for key, row in chosen.items()}
        whole = {key: score for key, score in read.items() if score is not None}
        return cls(
            by={key: score for key, score in whole.items() if not key[1].endswith(GAIN)},
            gains={(m, name.removesuffix(GAIN), s): v for (m, name, s), v in whole.items() if name.endswith(GAIN)},
            drawn=_drawn(rows),
            checkpoints=_checkpoints(final),
            broken={(m, name): "it was recorded as not a number" for (m, name, _), v in read.items() if v is None},
        )

    @staticmethod
    def score_of(row: Row) -> Score | None:
        """The score of one row, None where it is not a number. Half an interval is none."""
        if not math.isfinite(row["value"]):
            return None
        low, high = row.get("low"), row.get("high")
        if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
            low = high = None
        return Score(row["value"], low, high, row["n"], row.get("encoder"), row.get("preprocessing"), row["step"])

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(sorted({subject for model, _, subject in self.by if model not in REFERENCES}))

    @property
    def metrics(self) -> tuple[str, ...]:
        found = {metric for model, metric, _ in self.by if model not in REFERENCES}
        return (*(name for name in METRICS if name in found), *sorted(found - METRICS.keys()))

    def subjects_of(self, model: str, metric: str) -> tuple[str, ...]:
        return tuple(sorted(s for m, name, s in self.by if (m, name) == (model, metric)))

    def final(
        self, model: str, metric: str, subject: str | None = None, subjects: Sequence[str] | None = None
    ) -> Score | Absent:
        """Over one subject, some (`subjects`), or all that this model was scored on."""
        wanted = [subject] if subject is not None else subjects
        found = [
            score
            for (m, name, s), score in sorted(self.by.items())
            if (m, name) == (model, metric) and (wanted is None or s in wanted)
        ]
        if found:
            return mean(found)
        if (model, metric) in self.broken:
            return Absent(self.broken[model, metric])
        return Absent("no final score of it is recorded" if self.by else "no final scores are recorded")

    def gain(self, model: str, metric: str) -> Gain | None:
        """The recorded paired difference to the base, over all subjects of the model."""
        found = [score for (m, name, _), score in sorted(self.gains.items()) if (m, name) == (model, metric)]
        if not found or model == BASE:
            return None
        joined = mean(found)
        return Gain(joined.value, joined.low, joined.high, paired=True)


def _own(row: Row, hashes: Mapping[str, Sequence[str]]) -> bool:
    known = hashes.get(row["model"], ())
    return not known or row.get("artifact") in known


def _joined(found: Mapping[_Key, list[Score]]) -> dict[_Key, Score]:
    return {key: mean(scores) for key, scores in found.items()}


def _drawn(rows: Iterable[Row]) -> dict[tuple[str, str, int], Score]:
    found: dict[tuple[str, str, int], list[Score]] = {}
    for row in rows:
        steps = row["split"].removeprefix(DRAWN_WITH)
        score = Scores.score_of(row)
        if row["split"].startswith(DRAWN_WITH) and steps.isdigit() and score is not None:
            found.setdefault((row["model"], row["metric"], int(steps)), []).append(score)
    return _joined(found)


def _checkpoints(final: Iterable[Row]) -> dict[tuple[str, int, str], Score]:
    found: dict[tuple[str, int, str], list[Score]] = {}
    steps: dict[tuple[str, str], set[int]] = {}
    tuned = [row for row in final if row["model"] not in (*REFERENCES, BASE)]
    for row in tuned:
        steps.setdefault((row["model"], row["subject"]), set()).add(row["step"])
    for row in tuned:
        score = Scores.score_of(row)
        if score is not None and len(steps[row["model"], row["subject"]]) > 1:
            found.setdefault((row["model"], row["step"], row["metric"]), []).append(score)
    return _joined(found)
