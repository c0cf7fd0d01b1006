"""How many cases a randomised test tries: few in CI, `SDXL_RAY_CASES` of them in `make chaos`."""

from __future__ import annotations

import os


def cases(few: int) -> int:
    """`few`, or what the environment asks for when that is more."""
    return max(few, int(os.environ.get("SDXL_RAY_CASES", "0")))
