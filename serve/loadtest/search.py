"""The highest rate that keeps p99 under a bound: doubling or halving from the first rate, then bisection of logarithms.

A rate keeps the bound when every request was answered and p99 (nearest rank) is at or under it: shedding is not a way
to be fast. Each probe is one run with the same seed, so that arms climb the same arrivals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sdxl_ray.report.latencies import kept_bound
from serve.loadtest.config import LoadTest
from serve.loadtest.plan import Run

Take = Callable[[Run], list[dict[str, Any]]]


def highest_rate(arm: str, settings: LoadTest, take: Take, say: Callable[[str], None]) -> float | None:
    """Queries/s, the highest that was tried and held; None when no probe held. Its rows have phase `search`."""
    bound = settings.bound
    assert bound is not None
    held, broken = 0.0, math.inf
    rate = float(settings.rates[0])
    for probe in range(bound.probes):
        rate = float(f"{rate:.3g}")
        run = Run(arm, "search", "server", rate, probe, bound.queries, settings.seed)
        if kept_bound(take(run), bound.p99_ms):
            held = max(held, rate)
        else:
            broken = min(broken, rate)
        rate = held * 2 if math.isinf(broken) else broken / 2 if not held else math.sqrt(held * broken)
    limit = f"p99 <= {bound.p99_ms:g} ms"
    say(f"{arm}: {limit} up to {held:g}/s" if held else f"{arm}: no rate tried keeps {limit}")
    return held or None
