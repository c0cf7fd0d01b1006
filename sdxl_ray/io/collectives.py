"""Group: the processes that compute one run together, as the maths sees them; `SingleProcess` is a group of one.

Every method is collective: all ranks call it, in the same order. The cluster's version is in `distributed/`.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Collectives(Protocol):
    """Ranks 0 … world-1 that work on one run."""

    rank: int
    world: int

    def barrier(self) -> None:
        """Wait until every rank is here."""

    def gather(self, value: T) -> list[T]:
        """The values of all ranks in rank order, on every rank."""


class SingleProcess:
    """The group of one process."""

    rank = 0
    world = 1

    def barrier(self) -> None:
        """Nothing to wait for."""

    def gather(self, value: T) -> list[T]:
        """`[value]`."""
        return [value]


def leads_machine(group: Collectives, folder: Path) -> bool:
    """Collective. Whether this rank is the first of those that share its machine and the disk under `folder`."""
    places = group.gather((socket.gethostname(), str(folder)))
    return places.index(places[group.rank]) == group.rank


def share(items: Sequence[Any], group: Collectives) -> list[Any]:
    """This rank's part of a list that all ranks hold: every world-th item."""
    return list(items[group.rank :: group.world])


def gathered(count: int, work: Callable[[list[int]], Sequence[T]], group: Collectives) -> list[T]:
    """Collective: the results of jobs 0 … count-1, in order, on every rank; `work` does the jobs it is given.

    Every rank is given as many, the last ones do the last job again: under ZeRO-3 a forward is collective.
    """
    rounds = math.ceil(count / group.world)
    mine = [min(k * group.world + group.rank, count - 1) for k in range(rounds)]
    pairs = group.gather(list(zip(mine, work(mine), strict=True)))
    by_job = dict(pair for rank in pairs for pair in rank)
    return [by_job[i] for i in range(count)]
