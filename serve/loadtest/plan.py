"""The order of a load test's runs: ABBA, so that a machine whose speed drifts slows all arms alike."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sdxl_ray.config.load_profile import Scenario
from serve.loadtest.config import LoadTest

LoadPhase = Literal["run", "search"]


@dataclass(frozen=True)
class LoadRun:
    """One stretch of load on one arm. rate: queries/s, 0 where the scenario has none. seed: of arrivals and order."""

    arm: str
    phase: LoadPhase
    scenario: Scenario
    rate: float
    round: int
    queries: int
    seed: int

    @property
    def key(self) -> tuple[str, str, str, float, int]:
        """What its rows share, and no other run's rows have."""
        return self.arm, self.phase, self.scenario, self.rate, self.round

    @property
    def label(self) -> str:
        """A name for people."""
        rate = f" at {self.rate:g}/s" if self.rate else ""
        if self.phase == "search":
            return f"{self.arm}, search{rate}, probe {self.round + 1}"
        return f"{self.arm}, {self.scenario}{rate}, round {self.round + 1}"

    @property
    def folder(self) -> str:
        """A name for files."""
        words = f"{self.arm}-{self.phase}-{self.scenario}-{self.rate:g}-{self.round}"
        return re.sub(r"[^A-Za-z0-9_.-]", "_", words)


def runs(settings: LoadTest, arms: Sequence[str]) -> Iterator[LoadRun]:
    """Every run but those of the search. Arms of the same rate and round get the same seed."""
    for rate in settings.rates or (0.0,):
        for round_ in range(settings.rounds):
            for arm in abba(arms, round_):
                yield LoadRun(
                    arm, "run", settings.scenario, rate, round_, settings.queries_at(rate), settings.seed + round_
                )


def abba(arms: Sequence[str], round_: int) -> list[str]:
    """The arms forwards in even rounds, backwards in odd ones."""
    return list(arms) if round_ % 2 == 0 else list(reversed(arms))
