"""Asks whether a node is about to go: by time, because a notice is short and steps may be long."""

from __future__ import annotations

import time
from collections.abc import Callable

from sdxl_ray.io.collectives import Collectives

#: Seconds between questions, at most; a step that takes longer is followed by one. Clouds give 30 to 120 s of notice.
EVERY_S = 2.0
#: Steps between questions, at most: pace is that of the past, and a step may suddenly take longer.
MOST_STEPS = 10


class PreemptionCheck:
    """Collective. Clocks of ranks differ, so they agree on the next step to ask at, by the slowest rank's pace."""

    def __init__(
        self,
        group: Collectives,
        preempted: Callable[[], bool],
        start: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`preempted()` is collective; start: steps that were done before."""
        self._group, self._preempted, self._clock = group, preempted, clock
        self._asked, self._asked_at, self._next = start, clock(), start + 1

    def __call__(self, done: int) -> bool:
        """Whether a node of the run is about to go; called on every rank after each step, with the number of steps."""
        if done < self._next:
            return False
        now = self._clock()
        pace = max(self._group.gather((now - self._asked_at) / (done - self._asked)))
        self._asked, self._asked_at = done, now
        self._next = done + min(MOST_STEPS, max(1, int(EVERY_S / pace) if pace > 0 else 1))
        return self._preempted()
