"""The highest rate that keeps p99 under a bound: doubling or halving from the first rate, then bisection of logarithms.

A rate keeps the bound when every request was answered and p99 of the sample (nearest rank: of 459 queries 4 may take
longer) is at or under it: shedding is not a way to be fast. Each probe is one run with the same seed, so that arms
climb the same arrivals; they take turns probe by probe, as in the other runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sdxl_ray.metrics.latency import highest_rates, kept_bound
from serve.loadtest.config import LoadTest
from serve.loadtest.plan import LoadRun, abba

Take = Callable[[LoadRun], list[dict[str, Any]]]


class Search:
    """The search of one arm: which rate is next, and what is known of those that were tried."""

    def __init__(self, arm: str, settings: LoadTest) -> None:
        assert settings.bound is not None
        self._arm, self._settings, self._bound = arm, settings, settings.bound
        self._held, self._broken = 0.0, math.inf
        self._rate = float(settings.rates[0])
        self._rows: list[dict[str, Any]] = []

    def probe(self, number: int, take: Take) -> None:
        """Try the next rate."""
        rate = float(f"{self._rate:.3g}")
        found = take(LoadRun(self._arm, "search", "server", rate, number, self._bound.queries, self._settings.seed))
        self._rows += found
        if kept_bound(found, self._bound.p99_ms):
            self._held = max(self._held, rate)
        else:
            self._broken = min(self._broken, rate)
        held, broken = self._held, self._broken
        self._rate = held * 2 if math.isinf(broken) else broken / 2 if not held else math.sqrt(held * broken)

    def said(self) -> str:
        """What came out, in a line."""
        limit = f"p99 <= {self._bound.p99_ms:g} ms"
        (best,) = highest_rates(self._rows)
        words = f"{limit} up to {best.words}/s" if best.words else f"no rate tried keeps {limit}"
        return f"{self._arm}: {words}"


def search(settings: LoadTest, take: Take, say: Callable[[str], None]) -> None:
    """Search every arm; the rows that `take` gets have phase `search`, and `highest_rates` reads them."""
    assert settings.bound is not None
    searches = {arm: Search(arm, settings) for arm in settings.arms}
    for number in range(settings.bound.probes):
        for arm in abba(list(searches), number):
            searches[arm].probe(number, take)
    for one in searches.values():
        say(one.said())
