"""Admission: how much may be under way at once, counted in images and in work, and when to come back.

Counted at the ingress, so that a request that is shed costs the replicas nothing. Several ingress processes have an
equal share each. The bound on what was accepted is what bounds its latency.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from serve.http.errors import busy

#: Weight of the newest observation in the running mean of the speed.
_NEWEST = 0.1


class AdmissionLedger:
    """What one ingress has under way at one group of replicas."""

    def __init__(self, images: int, work: float, clock: Callable[[], float] = time.monotonic) -> None:
        """images, work: what it may admit at once."""
        self._most: tuple[int, float] = (images, work)
        self._clock = clock
        self._seconds_per_work: float | None = None
        self._since = 0.0
        self.images = 0
        self.work = 0.0

    def resize(self, images: int, work: float) -> None:
        """Change what it may admit at once, since the group has more or fewer replicas. What was admitted stays."""
        self._most = (images, work)

    def admit(self, images: int, work: float) -> None:
        """Count it in, or raise ApiError 429 with when to come back."""
        if self.images + images > self._most[0] or (self.images and self.work + work > self._most[1]):
            raise busy("queue_full", f"{self.images} images are under way, and more would wait too long", self.wait_s)
        if not self.images:
            self._since = self._clock()
        self.images += images
        self.work += work

    def release(self, images: int, work: float, *, drawn: bool) -> None:
        """Count it out. drawn: it was finished, and so tells how fast the replicas are."""
        if drawn and work > 0:
            now = self._clock()
            rate = (now - self._since) / work
            old = self._seconds_per_work
            self._seconds_per_work = rate if old is None else old + _NEWEST * (rate - old)
            self._since = now
        self.images -= images
        self.work = self.work - work if self.images else 0.0

    @property
    def wait_s(self) -> float:
        """Seconds until half of what is under way is done, as far as is known: the value of Retry-After."""
        return min(60.0, max(1.0, self.work * (self._seconds_per_work or 0.0) / 2))


def share(total: float, ingresses: int) -> int:
    """What one of several ingress processes may admit."""
    return math.ceil(total / ingresses)
