"""Scores over several trainings and several subjects, with intervals that know which images belong together.

    rows = Pool({"robot": evaluation, "frog": another}, {"lora": ("lora-0", "lora-1")}).scores()

An arm that was trained with several seeds has one score a subject: its trainings are one more unit that is drawn again
(`stacked`). Over subjects the bootstrap is hierarchical (Davison and Hinkley, 1997, section 3.8): subjects are drawn
again, and within each its photos by themselves, while prompts and seeds, which all subjects share, are drawn once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from sdxl_ray.evaluation.evaluated_models import BASE, OTHER, REAL
from sdxl_ray.evaluation.runner import EvaluationResult
from sdxl_ray.evaluation.scores import METRICS
from sdxl_ray.io.records import ALL_SUBJECTS
from sdxl_ray.io.rows import Row
from sdxl_ray.metrics.bootstrap import RESAMPLES, Interval, Terms, counts, ends, interval, resampled

#: Units that every subject has its own of.
_OWN = ("photo", "other")


def stacked(trainings: Sequence[Terms]) -> Terms:
    """The terms of several trainings of one arm as those of one score; they must be of the same prompts and seeds."""
    first = trainings[0]
    if len(trainings) == 1:
        return first
    values = np.stack([terms.values for terms in trainings])
    return Terms(values, ("training", *first.units), sum(terms.n for terms in trainings))


def pooled(subjects: Sequence[Terms], resamples: int = RESAMPLES) -> Interval:
    """The mean over subjects, each counting the same, and where 95 % of its resamples lie."""
    if len(subjects) == 1:
        return interval(subjects[0], resamples=resamples)
    value, n = float(np.mean([terms.mean for terms in subjects])), sum(terms.n for terms in subjects)
    own = [
        Terms(terms.values, tuple(f"{unit} of {place}" if unit in _OWN else unit for unit in terms.units), terms.n)
        for place, terms in enumerate(subjects)
    ]
    drawn = [resampled(terms, resamples=resamples) for terms in own]
    # A subject whose terms cannot be drawn again (one photo, say) still is a subject.
    means = [np.full(resamples, own[k].mean) if some is None else some for k, some in enumerate(drawn)]
    weights = counts("subject", len(subjects), 0, resamples)
    means_ZK = np.stack(means, axis=1)
    known = weights * np.isfinite(means_ZK)
    top, bottom = (weights * np.nan_to_num(means_ZK)).sum(axis=1), known.sum(axis=1)
    # A draw in which no subject has a pair says nothing.
    return Interval(value, *ends(np.divide(top, bottom, out=np.full(resamples, np.nan), where=bottom > 0)), n)


@dataclass(frozen=True)
class Pool:
    """Evaluations by subject, and which of their models are trainings of which arm; the base has its own name."""

    found: Mapping[str, EvaluationResult]
    arms: Mapping[str, Sequence[str]]
    resamples: int = RESAMPLES

    def scores(self) -> list[Row]:
        """Rows of the table `scores`: arms, base and references, by subject, and over all where there are several."""
        rows = []
        for (split, arm, metric), per in self._gathered().items():
            gains = self._differences(split, arm, BASE, metric) if arm not in (BASE, REAL, OTHER) else {}
            for name, terms in ((metric, per), (f"{metric}_gain", gains)):
                for subject, found in self._intervals(terms):
                    rows.append(self._like(split, arm, metric, subject) | {"metric": name} | found)
        return rows

    def differences(self) -> list[Row]:
        """Rows of the table `differences`: every arm minus every one before it, the base first."""
        rows = []
        split = self._split
        for (first, second), metric in ((pair, m) for pair in combinations((BASE, *self.arms), 2) for m in METRICS):
            for subject, found in self._intervals(self._differences(split, second, first, metric)):
                known = {"step": 0, "model": second, "against": first, "metric": metric, "split": split}
                rows.append({**known, "subject": subject, **found})
        return rows

    @property
    def _split(self) -> str:
        """That of the table, without other numbers of steps."""
        return str(next(row["split"] for found in self.found.values() for row in found.differences or found.scores))

    def _members(self, arm: str) -> Sequence[str]:
        return self.arms.get(arm, (arm,))

    def _gathered(self) -> dict[tuple[str, str, str], dict[str, Terms]]:
        """(split, arm, metric) -> subject -> terms."""
        gathered: dict[tuple[str, str, str], dict[str, Terms]] = {}
        for subject, found in self.found.items():
            kinds = dict.fromkeys((split, metric) for split, _, metric in found.terms)
            for arm in (BASE, *self.arms, REAL, OTHER):
                for split, metric in kinds:
                    some = [found.terms.get((split, member, metric)) for member in self._members(arm)]
                    whole = [terms for terms in some if terms is not None]
                    if whole and len(whole) == len(some):
                        gathered.setdefault((split, arm, metric), {})[subject] = stacked(whole)
        return gathered

    def _differences(self, split: str, arm: str, against: str, metric: str) -> dict[str, Terms]:
        """Subject -> paired difference. Trainings of two arms are paired in their order, one base serves all."""
        per: dict[str, Terms] = {}
        for subject, found in self.found.items():
            mine = [found.terms.get((split, member, metric)) for member in self._members(arm)]
            other = [found.terms.get((split, member, metric)) for member in self._members(against)]
            if len(other) == 1:
                other *= len(mine)
            pairs = [(a, b) for a, b in zip(mine, other, strict=False) if a is not None and b is not None]
            if pairs and len(pairs) == len(mine) == len(other):
                per[subject] = stacked([a - b for a, b in pairs])
        return per

    def _intervals(self, per: Mapping[str, Terms]) -> Iterator[tuple[str, Row]]:
        for subject, terms in per.items():
            yield subject, _plain(interval(terms, resamples=self.resamples))
        if len(self.found) > 1 and len(per) == len(self.found):
            yield ALL_SUBJECTS, _plain(pooled(list(per.values()), self.resamples))

    def _like(self, split: str, arm: str, metric: str, subject: str) -> Row:
        """A row of the arm's first training, for all that is not a number; over subjects, of the first."""
        found = self.found[subject] if subject != ALL_SUBJECTS else next(iter(self.found.values()))
        members, wanted = self._members(arm), (split, metric)
        rows = [row for row in found.scores if (row["split"], row["metric"]) == wanted and row["model"] in members]
        seconds = [row["seconds"] for row in rows if row["seconds"] is not None]
        return {**rows[0], "model": arm, "subject": subject, "seconds": sum(seconds) if seconds else None}


def _plain(found: Interval) -> Row:
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
