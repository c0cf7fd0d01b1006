"""The `scores` table as a report asks it: final scores by model and metric, over one subject or all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self, TypeVar

from sdxl_ray.io.records import ALL_SUBJECTS
from sdxl_ray.io.rows import Row
from sdxl_ray.report.metrics import BASE, GAIN, METRICS, REFERENCES, Absent, Gain, Score, mean

#: The split whose prompts and seeds chose neither a checkpoint nor a setting: the only one that decides anything here.
FINAL = "final"
#: Splits `final@8`: the final prompts drawn with another number of denoising steps.
DRAWN_WITH = f"{FINAL}@"

_Key = TypeVar("_Key")


@dataclass(frozen=True)
class FinalScores:
    """Final scores by (model, metric, subject), and the same for other numbers of denoising steps.

    checkpoints: (model, step, metric) -> score, of models whose final score was taken at more than one step.
    pairs: (model, against, metric, subject) -> their paired difference. Where the evaluator joined all subjects, the
    joined numbers are under the subject ALL_SUBJECTS. missing: metric -> why nothing has a score of it.
    """

    by: dict[tuple[str, str, str], Score]
    gains: dict[tuple[str, str, str], Score]
    drawn: dict[tuple[str, str, int], Score]
    checkpoints: dict[tuple[str, int, str], Score]
    broken: dict[tuple[str, str], str]
    pairs: dict[tuple[str, str, str, str], Gain]
    missing: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        rows: Iterable[Row],
        hashes: Mapping[str, Sequence[str]],
        differences: Iterable[Row] = (),
        missing: Mapping[str, str] | None = None,
    ) -> Self:
        """From records, of the base, the references and the arms in `hashes` alone.

        hashes: of each arm's artifacts, which tell its own scores from those of other checkpoints. differences: of the
        table of that name.
        """
        known = {BASE, *REFERENCES, *hashes}
        rows = [row for row in rows if row["model"] in known]
        final = [row for row in rows if row["split"] == FINAL]
        chosen = _chosen(rows, hashes)
        read = {(r["model"], r["metric"], r["subject"]): cls.score_of(r) for r in chosen if r["split"] == FINAL}
        whole = {key: score for key, score in read.items() if score is not None}
        return cls(
            by={key: score for key, score in whole.items() if not key[1].endswith(GAIN)},
            gains={(m, name.removesuffix(GAIN), s): v for (m, name, s), v in whole.items() if name.endswith(GAIN)},
            drawn=_drawn(chosen),
            checkpoints=_checkpoints(final),
            broken={(m, name): "it was recorded as not a number" for (m, name, _), v in read.items() if v is None},
            pairs=_pairs(differences, known),
            missing=missing or {},
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
        found = {subject for model, _, subject in self.by if model not in REFERENCES}
        return tuple(sorted(found - {ALL_SUBJECTS}))

    @property
    def metrics(self) -> tuple[str, ...]:
        found = {metric for model, metric, _ in self.by if model not in REFERENCES}
        return (*(name for name in METRICS if name in found), *sorted(found - METRICS.keys()))

    def subjects_of(self, model: str, metric: str) -> tuple[str, ...]:
        return tuple(sorted(s for m, name, s in self.by if (m, name) == (model, metric) and s != ALL_SUBJECTS))

    def final(
        self, model: str, metric: str, subject: str | None = None, subjects: Sequence[str] | None = None
    ) -> Score | Absent:
        """Over one subject, some (`subjects`), or all that this model was scored on."""
        if subject is None and subjects is None and (joined := self.by.get((model, metric, ALL_SUBJECTS))) is not None:
            return replace(joined, subjects=len(self.subjects_of(model, metric)))
        wanted = [subject] if subject is not None else subjects
        found = [
            score
            for (m, name, s), score in sorted(self.by.items())
            if (m, name) == (model, metric) and (s != ALL_SUBJECTS if wanted is None else s in wanted)
        ]
        if found:
            return mean(found)
        if (model, metric) in self.broken:
            return Absent(self.broken[model, metric])
        if metric in self.missing:
            return Absent(self.missing[metric])
        return Absent("no final score of it is recorded" if self.by else "no final scores are recorded")

    def gain(self, model: str, metric: str) -> Gain | None:
        """The recorded paired difference to the base, over all subjects of the model."""
        of = {s: score for (m, name, s), score in sorted(self.gains.items()) if (m, name) == (model, metric)}
        if not of or model == BASE:
            return None
        joined = of.get(ALL_SUBJECTS) or mean(list(of.values()))
        return Gain(joined.value, joined.low, joined.high, paired=True)

    def pair(self, model: str, against: str, metric: str) -> Gain | None:
        """The recorded paired difference of two models over all subjects, in either order."""
        for first, second, sign in ((model, against, 1), (against, model, -1)):
            of = {s: gain for (a, b, m, s), gain in self.pairs.items() if (a, b, m) == (first, second, metric)}
            found = of.get(ALL_SUBJECTS) or (next(iter(of.values())) if len(of) == 1 else None)
            if found is not None:
                return found if sign > 0 else found.reversed
        return None


def _chosen(rows: Iterable[Row], hashes: Mapping[str, Sequence[str]]) -> list[Row]:
    """Of each score one row, by ascending step: the last one counts, unless an earlier one is the artifact's."""
    chosen: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = (row["model"], row["metric"], row["subject"], row["split"])
        if key not in chosen or _own(row, hashes) >= _own(chosen[key], hashes):
            chosen[key] = row
    return list(chosen.values())


def _own(row: Row, hashes: Mapping[str, Sequence[str]]) -> bool:
    known = hashes.get(row["model"], ())
    return not known or row.get("artifact") in known


def _joined(found: Mapping[_Key, list[Score]]) -> dict[_Key, Score]:
    return {key: mean(scores) for key, scores in found.items()}


def _pairs(rows: Iterable[Row], known: set[str]) -> dict[tuple[str, str, str, str], Gain]:
    return {
        (row["model"], row["against"], row["metric"], row["subject"]): Gain(row["value"], row["low"], row["high"], True)
        for row in rows
        if row["split"] == FINAL and {row["model"], row["against"]} <= known and math.isfinite(row["value"])
    }


def _drawn(rows: Sequence[Row]) -> dict[tuple[str, str, int], Score]:
    found: dict[tuple[str, str, int], list[Score]] = {}
    joined = any(row["subject"] == ALL_SUBJECTS for row in rows)
    for row in rows:
        if joined and row["subject"] != ALL_SUBJECTS:
            continue
        steps = row["split"].removeprefix(DRAWN_WITH)
        score = FinalScores.score_of(row)
        if row["split"].startswith(DRAWN_WITH) and steps.isdigit() and score is not None:
            found.setdefault((row["model"], row["metric"], int(steps)), []).append(score)
    return _joined(found)


def _checkpoints(final: Iterable[Row]) -> dict[tuple[str, int, str], Score]:
    found: dict[tuple[str, int, str], list[Score]] = {}
    steps: dict[tuple[str, str], set[int]] = {}
    tuned = [row for row in final if row["model"] not in (*REFERENCES, BASE) and row["subject"] != ALL_SUBJECTS]
    for row in tuned:
        steps.setdefault((row["model"], row["subject"]), set()).add(row["step"])
    for row in tuned:
        score = FinalScores.score_of(row)
        if score is not None and len(steps[row["model"], row["subject"]]) > 1:
            found.setdefault((row["model"], row["step"], row["metric"]), []).append(score)
    return _joined(found)
