"""Percentiles, intervals and ratios against numpy, exact probabilities and known answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sdxl_ray.metrics.latency import (
    ENOUGH_FOR_P99,
    Condition,
    estimate,
    highest_rates,
    kept_bound,
    may_miss,
    percentile,
    ratio,
    summaries,
)
from serve.loadtest.table import describe, plain

RNG = np.random.default_rng(0)
SERVER = Condition("server", 2.0)


def row(arm: str, index: int, latency_ms: float, **more: Any) -> dict[str, Any]:
    """A request as the table has it."""
    known: dict[str, Any] = {
        "arm": arm, "phase": "run", "scenario": "server", "rate": 2.0, "round": 0, "index": index, "status": 200,
        "latency_ms": latency_ms, "intended_s": index / 2, "sent_s": index / 2 + 0.001,
        "done_s": index / 2 + latency_ms / 1000, "queue_ms": None, "text_ms": None, "denoise_ms": None,
        "decode_ms": None, "server_ms": None, "batch": None, "artifact": "", "deployment": "shared",
        "generator_cpu": 0.1,
    }  # fmt: skip
    return known | more


@pytest.mark.parametrize("n", [1, 2, 10, 459, 1000])
@pytest.mark.parametrize("percent", [50, 90, 99])
def test_percentiles_are_nearest_ranks(n: int, percent: float) -> None:
    values = RNG.exponential(size=n)
    rank = math.ceil(percent / 100 * n - 1e-9)
    assert percentile(values, percent) == sorted(values)[rank - 1]
    assert percentile(values, percent) == np.quantile(values, percent / 100, method="inverted_cdf")


@pytest.mark.parametrize(("n", "percent"), [(40, 50), (200, 90), (1000, 99)])
def test_an_interval_has_the_ranks_of_the_binomial(n: int, percent: float) -> None:
    q = percent / 100
    below = np.cumsum([math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(n + 1)])
    found = estimate(np.arange(1, n + 1, dtype=np.float64), percent)  # a value is its rank
    assert found.low is not None and found.high is not None
    low, high = int(found.low), int(found.high)
    assert below[high - 1] - below[low - 1] >= 0.95
    assert below[low] > 0.025 and below[high - 2] < 0.975  # one rank further in would be too few


def test_an_interval_covers_as_often_as_it_says() -> None:
    true = math.log(10)  # p90 of the exponential distribution
    held = 0
    for _ in range(400):
        found = estimate(RNG.exponential(size=100), 90)
        held += (found.low or 0) <= true <= (found.high or math.inf)
    assert held / 400 > 0.92


def test_an_end_that_a_sample_cannot_give_is_open() -> None:
    assert estimate(np.arange(1.0, 368.0), 99).high is None  # 0.99^367 > 0.025
    assert estimate(np.arange(1.0, 370.0), 99).high == 369
    assert estimate(np.array([5.0]), 50) == estimate(np.array([5.0]), 50)
    alone = estimate(np.array([5.0]), 50)
    assert (alone.value, alone.low, alone.high, alone.n) == (5.0, None, None, 1)
    assert 0.99**ENOUGH_FOR_P99 < 0.01 < 0.99 ** (ENOUGH_FOR_P99 - 1)


def test_a_summary_counts_what_was_shed_and_what_failed() -> None:
    rows = [row("base", i, 100.0 + i) for i in range(8)]
    rows += [row("base", 8, 3.0, status=429), row("base", 9, 3.0, status=503), row("base", 10, 9.0, status=0)]
    rows += [row("base", 0, 200.0, round=1, done_s=4.0, batch=3.0, artifact="a" * 64)]
    (found,) = summaries(rows)
    assert (found.sent, found.answered, found.shed, found.failed) == (12, 9, 2, 1)
    assert found.percentiles[50].value == 104.0
    assert found.throughput == pytest.approx(9 / (max(r["done_s"] for r in rows[:11]) + 4.0))
    assert found.parts["batch"] == 3.0 and found.parts["queue_ms"] is None
    assert found.artifacts == ("", "a" * 64) and found.late_ms == pytest.approx(1.0)
    (nothing,) = summaries([row("base", 0, 3.0, status=429)])
    assert nothing.percentiles == {} and nothing.throughput == 0


def test_a_ratio_is_of_the_requests_that_both_answered() -> None:
    base = RNG.exponential(100, 60)
    rows = [row("base", i, value) for i, value in enumerate(base)]
    rows += [row("lora", i, 1.5 * value) for i, value in enumerate(base)]
    found = ratio(rows, "lora", "base", SERVER, 90)
    # Paired, so a common factor is exact, however much requests differ among themselves.
    assert found is not None and found.n == 60
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))
    rows[70]["status"] = 429
    fewer = ratio(rows, "lora", "base", SERVER, 90)
    assert fewer is not None and fewer.n == 59
    assert ratio(rows, "lora", "base", Condition("server", 4.0), 90) is None
    assert ratio(rows, "dreambooth", "base", SERVER, 90) is None


def test_a_ratio_without_a_difference_holds_one() -> None:
    held = 0
    for _ in range(60):
        rows = [row(arm, i, value) for arm in ("base", "lora") for i, value in enumerate(RNG.exponential(100, 80))]
        found = ratio(rows, "lora", "base", SERVER, 50)
        assert found is not None and found.low is not None and found.high is not None
        held += found.low <= 1 <= found.high
    assert held >= 50


def test_a_rate_holds_when_nothing_is_shed_and_p99_is_under_the_bound() -> None:
    rows = [row("base", i, 10.0 * i, phase="search") for i in range(1, 11)]
    assert kept_bound(rows, 100) and not kept_bound(rows, 99)
    assert not kept_bound([*rows, row("base", 11, 1.0, status=429)], 1000)
    rows += [row("base", i, 500.0, phase="search", rate=4.0) for i in range(5)]
    rows += [row("lora", i, 500.0, phase="search", rate=4.0) for i in range(5)]
    found = highest_rates([{**r, "bound_ms": 100.0} for r in rows])
    assert [(best.arm, best.words, best.probes) for best in found] == [("base", "2", 2), ("lora", None, 1)]
    assert summaries(rows) == []
    (first,) = highest_rates([{**r, "bound_ms": 100.0} for r in rows if r["rate"] == 2.0])
    assert first.words == ">= 2"  # nothing broke the bound
    slowest = [row("base", i, 1000.0 if i < may_miss(459) else 1.0) for i in range(459)]
    assert may_miss(459) == 4 and kept_bound(slowest, 1.0)
    assert not kept_bound([*slowest[:-1], row("base", 458, 1000.0)], 1.0)


def test_a_ratio_has_an_interval_only_where_the_percentile_is_shown() -> None:
    """Drawing 300 requests again gives a p99 an interval too, of the same three slow ones."""
    for count, percent, closed in (
        (300, 99, False),
        (458, 99, False),
        (459, 99, True),
        (20, 90, False),
        (60, 90, True),
    ):
        base = RNG.exponential(100, count)
        rows = [row("base", i, value) for i, value in enumerate(base)]
        rows += [row("lora", i, 1.5 * value) for i, value in enumerate(base)]
        found = ratio(rows, "lora", "base", SERVER, percent)
        assert found is not None and found.value == pytest.approx(1.5)
        assert (found.low is not None, found.high is not None) == (closed, closed), (count, percent)


def test_an_arm_with_adapters_is_not_called_the_base() -> None:
    rows = [row("two", 0, 5.0, adapters="dog=0123456789abcdef toy=fedcba9876543210", artifact="")]
    assert "base + dog 0123456789ab + toy fedcba987654" in describe(rows)
    assert plain(rows)["arms"][0]["adapters"] == ["dog=0123456789abcdef", "toy=fedcba9876543210"]
