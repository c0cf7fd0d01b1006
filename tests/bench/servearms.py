"""What the serving benchmark measures in one child: how much of what, and on which shapes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

#: A user who wants a draft, one who wants the usual, one who wants the best: their weights.
MIX = {4: 3.0, 10: 1.0, 50: 1.0}


@dataclass(frozen=True)
class ServeArm:
    """One child of the benchmark.

    steps: denoising steps where they are equal; mix: step counts with weights where they are not. singles: images one
    after another in each round; images: at once in each round; queries: of Poisson arrivals in each round.
    """

    name: Literal["embedded", "shapes"]
    shape: Literal["tiny", "sdxl"] = "tiny"
    steps: int = 20
    mix: dict[int, float] = field(default_factory=lambda: dict(MIX))
    guidance: float = 4.0
    rounds: int = 2
    singles: int = 8
    images: int = 16
    queries: int = 230
    batch: int = 8
    rank: int = 16
    load: float = 0.8
    workers: int = 2

    @property
    def script(self) -> str:
        return f"serving/{self.name}.py"
