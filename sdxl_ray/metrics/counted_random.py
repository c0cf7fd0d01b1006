"""Random numbers that are functions of their counters: no state walks from one draw to the next."""

from __future__ import annotations

import hashlib

import numpy as np


def counted(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A generator (Philox) of its arguments alone: equal arguments give equal draws, anywhere and in any order."""
    words = repr((int(seed), purpose, *map(int, counters))).encode()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(hashlib.sha256(words).digest()[:16], "little")))
