"""Latency of load-tested requests: percentiles with intervals, throughput, what was shed, and arms against each other.

Percentiles are nearest ranks of the answered requests. Their intervals are of order statistics (David and Nagaraja,
Order Statistics, 7.1): distribution-free, from the ranks that hold the percentile in 95 % of samples; they take
requests as independent, which requests that wait in one queue are only roughly. An upper end that no sample of this
size has is None. Two arms are compared request by request, as both met the same arrivals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdxl_ray.metrics.bootstrap import FloatArray

RequestRow = Mapping[str, Any]

#: Queries without a slower one that show a p99 with 99 % confidence (MLPerf: 0.99^459 < 0.01).
ENOUGH_FOR_P99 = 459
PERCENTILES = (50, 90, 99)
RESAMPLES = 1000
#: A server that is full says so.
SHED = (429, 503)
_ALPHA = 0.05
_PARTS = ("queue_ms", "text_ms", "denoise_ms", "decode_ms", "server_ms", "batch")


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; an end that the sample cannot give is None."""

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Condition:
    """What every arm met: one scenario at one rate. rate: queries/s, 0 where the scenario has none."""

    scenario: str
    rate: float

    @property
    def words(self) -> str:
        return f"{self.scenario}, {self.rate:g} queries/s" if self.rate else self.scenario


@dataclass(frozen=True)
class Summary:
    """One arm under one condition, over all rounds. percentiles: ms by percent, empty when nothing was answered.

    artifacts: hashes of the models that drew, "" for the base; adapters: `name=hash` of those that were asked for
    beside them. refused: how often a full server was asked again (offline alone). parts: medians of what the server
    reported (ms, and the mean batch), None where it reported none. throughput: answered
    requests/s. generator_cpu: the largest share of one core that the load generator took;
    late_ms: 99 % of requests left within this time of their arrival (offline holds them back on purpose).
    """

    arm: str
    condition: Condition
    sent: int
    answered: int
    shed: int
    failed: int
    percentiles: dict[int, Estimate]
    throughput: float
    parts: dict[str, float | None]
    artifacts: tuple[str, ...]
    adapters: tuple[str, ...]
    refused: int
    deployment: str
    generator_cpu: float
    late_ms: float
    latencies: FloatArray


def percentile(values: FloatArray, percent: float) -> float:
    """The smallest value that `percent` of the values are at or under."""
    return float(np.quantile(values, percent / 100, method="inverted_cdf"))


def estimate(values: FloatArray, percent: float) -> Estimate:
    """A percentile with its interval of order statistics."""
    ordered = np.sort(values)
    n, q = len(ordered), percent / 100
    steps = np.arange(n)
    log_mass = np.concatenate([[0.0], np.cumsum(np.log((n - steps) / (steps + 1)) + np.log(q / (1 - q)))])
    below = np.cumsum(np.exp(log_mass + n * np.log1p(-q)))  # P(at most k of n are under the percentile)
    lowest = int(np.searchsorted(below, _ALPHA / 2, side="right"))  # rank, from 1; 0: there is none
    highest = int(np.searchsorted(below, 1 - _ALPHA / 2)) + 1
    low = float(ordered[lowest - 1]) if lowest else None
    high = float(ordered[highest - 1]) if highest <= n else None
    return Estimate(percentile(ordered, percent), low, high, n)


def shown(found: Estimate, percent: float) -> bool:
    """Whether a sample is large enough to show this percentile: both ends are there, and a p99 has its 459 requests."""
    closed = found.low is not None and found.high is not None
    return closed and (percent < 99 or found.n >= ENOUGH_FOR_P99)


def summaries(rows: Iterable[RequestRow], phase: str = "run") -> list[Summary]:
    """One summary an arm and condition, in the order in which they first appear."""
    groups: dict[tuple[str, Condition], list[RequestRow]] = {}
    for row in rows:
        if row["phase"] == phase:
            groups.setdefault((row["arm"], Condition(row["scenario"], row["rate"])), []).append(row)
    return [_summary(arm, condition, found) for (arm, condition), found in groups.items()]


def _summary(arm: str, condition: Condition, rows: Sequence[RequestRow]) -> Summary:
    good = [row for row in rows if row["status"] == 200]
    shed = sum(row["status"] in SHED for row in rows)
    latencies = np.array([row["latency_ms"] for row in good], dtype=np.float64)
    reported = {name: [row[name] for row in good if row[name] is not None] for name in _PARTS}
    parts = {name: float(np.median(values)) if values else None for name, values in reported.items()}
    if reported["batch"]:
        parts["batch"] = float(np.mean(reported["batch"]))
    seconds = sum(max(row["done_s"] for row in run) for run in _rounds(rows).values())
    return Summary(
        arm,
        condition,
        sent=len(rows),
        answered=len(good),
        shed=shed,
        failed=len(rows) - len(good) - shed,
        percentiles={percent: estimate(latencies, percent) for percent in PERCENTILES} if good else {},
        throughput=len(good) / seconds if seconds > 0 else 0.0,
        parts=parts,
        artifacts=tuple(sorted({row["artifact"] for row in good if row["artifact"] is not None})),
        adapters=tuple(sorted({text for row in good for text in (row.get("adapters") or "").split()})),
        refused=sum(row.get("refused") or 0 for row in rows),
        deployment=rows[0]["deployment"],
        generator_cpu=max(row["generator_cpu"] for row in rows),
        late_ms=percentile(np.array([row["sent_s"] - row["intended_s"] for row in rows]) * 1000, 99),
        latencies=latencies,
    )


def _rounds(rows: Iterable[RequestRow]) -> dict[int, list[RequestRow]]:
    rounds: dict[int, list[RequestRow]] = {}
    for row in rows:
        rounds.setdefault(row["round"], []).append(row)
    return rounds


def ratio(rows: Iterable[RequestRow], arm: str, base: str, condition: Condition, percent: float) -> Estimate | None:
    """A percentile of `arm` over the same of `base`, of the requests that both answered; None when there are none.

    There is no interval where too few requests show the percentile itself: drawing them again would give one all the
    same, and a narrow one, of the same few slow requests. Otherwise it draws blocks of neighbouring requests of the
    common trace again, for both arms together: neighbours share a queue, and both arms met the same arrivals.
    """
    of: dict[str, dict[tuple[int, int], float]] = {arm: {}, base: {}}
    for row in rows:
        here = Condition(row["scenario"], row["rate"])
        if row["phase"] == "run" and here == condition and row["arm"] in of and row["status"] == 200:
            of[row["arm"]][row["round"], row["index"]] = row["latency_ms"]
    both = sorted(of[arm].keys() & of[base].keys())
    if not both:
        return None
    above, below = (np.array([of[name][place] for place in both], dtype=np.float64) for name in (arm, base))
    value = percentile(above, percent) / percentile(below, percent)
    n = len(both)
    if not shown(estimate(above, percent), percent) or not shown(estimate(below, percent), percent):
        return Estimate(value, None, None, n)
    block = max(1, round(n ** (1 / 3)))
    rng = np.random.Generator(np.random.Philox(key=n))
    starts = rng.integers(0, n, (RESAMPLES, -(-n // block)))
    places = ((starts[:, :, None] + np.arange(block)) % n).reshape(RESAMPLES, -1)[:, :n]
    drawn = [np.quantile(values[places], percent / 100, axis=1, method="inverted_cdf") for values in (above, below)]
    low, high = np.quantile(drawn[0] / drawn[1], [_ALPHA / 2, 1 - _ALPHA / 2])
    return Estimate(value, float(low), float(high), n)


def kept_bound(rows: Sequence[RequestRow], p99_ms: float) -> bool:
    """Whether every request was answered, and p99 of just these (`may_miss` of them set aside) keeps the bound."""
    if any(row["status"] != 200 for row in rows):
        return False
    return percentile(np.array([row["latency_ms"] for row in rows]), 99) <= p99_ms


def may_miss(n: int) -> int:
    """How many of n requests are slower than their p99 (nearest rank)."""
    return n - math.ceil(0.99 * n - 1e-9)


@dataclass(frozen=True)
class Highest:
    """What a search found for one arm: the bound of p99, and the highest rate tried that kept it (None: none did).

    open: no rate that was tried broke the bound, so that a higher one may keep it too.
    """

    arm: str
    bound_ms: float
    rate: float | None
    probes: int
    queries: int
    open: bool

    @property
    def words(self) -> str | None:
        """`12`, or `>= 12` where no rate broke the bound; None where none kept it."""
        return None if self.rate is None else f"{'>= ' if self.open else ''}{self.rate:g}"


def highest_rates(rows: Iterable[RequestRow]) -> list[Highest]:
    """The searches' outcome, arm by arm."""
    probes: dict[str, dict[float, list[RequestRow]]] = {}
    for row in rows:
        if row["phase"] == "search":
            probes.setdefault(row["arm"], {}).setdefault(row["rate"], []).append(row)
    found = []
    for arm, by_rate in probes.items():
        asked = next(iter(by_rate.values()))
        bound = asked[0]["bound_ms"]
        held = [rate for rate, answers in by_rate.items() if kept_bound(answers, bound)]
        open_ = len(held) == len(by_rate)
        found.append(Highest(arm, bound, max(held, default=None), len(by_rate), len(asked), open_))
    return found
