"""Exponential moving average of the trained weights, kept where the weights lie (a shard, under ZeRO-3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sdxl_ray.training.engine import TrainingEngine


class Ema:
    """fp32 average of every trained weight: average += (1 - decay) (weight - average) after each step.

    The decay rises as (1 + n) / (10 + n) to its final value, so that a short run's average is not its start.
    """

    def __init__(self, engine: TrainingEngine, decay: float) -> None:
        self._engine, self._decay = engine, decay
        self._parameters = [p for _, p in engine.trainable.named]
        self.averages: list[Tensor] = [engine.local(p).detach().float().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step `step` (1-based)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        # One by one: an fp32 copy of every weight at once would be the peak of a full run's memory.
        for average, p in zip(self.averages, self._parameters, strict=True):
            average.lerp_(self._engine.local(p).float(), 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the model has the averaged weights; afterwards its own again, bit for bit."""
        kept = [self._engine.local(p).clone() for p in self._parameters]
        self._write(self.averages)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for p, value in zip(self._parameters, values, strict=True):
            self._engine.local(p).copy_(value)
        self._engine.refresh()
