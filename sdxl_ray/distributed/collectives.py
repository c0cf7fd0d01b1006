"""The group of a Ray Train worker group: torch.distributed, set up by Ray."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


class TorchGroup:
    """All ranks of the default process group; plain values travel over gloo, so that no GPU is woken for them."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._gloo = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.barrier(group=self._gloo)

    def all_arrive(self, within_s: float) -> bool:
        """Whether every rank calls this within `within_s` seconds; returns once all have, or that time is over."""
        try:
            dist.monitored_barrier(self._gloo, timeout=timedelta(seconds=within_s))
        except RuntimeError:
            return False
        return True

    def gather(self, value: T) -> list[T]:
        """The values of all ranks in rank order, on every rank."""
        values: list[T | None] = [None] * self.world
        dist.all_gather_object(values, value, group=self._gloo)
        return values  # type: ignore[return-value]  # every place has been filled
