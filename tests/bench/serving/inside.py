"""The same images without HTTP: the bare pipeline one call at a time, and the engine, in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from sdxl_ray.models.pipeline import generate
from serve.engine.engine import ServingEngine
from serve.engine.request import AdapterUse, ImageRequest

PROMPT = "a photo of a dog on the beach"
Draw = Callable[[int], Awaitable[Any]]


@dataclass(frozen=True)
class Inside:
    """A pipeline and an engine of the same weights. batch: images of one pipeline call where many are wanted."""

    pipe: Any
    engine: ServingEngine
    steps: int
    guidance: float
    batch: int

    def pipeline_ms(self, count: int) -> list[float]:
        """Milliseconds of each image, one after another."""
        return [_timed(lambda seed=seed: self._generate([seed])) * 1000 for seed in range(count)]

    def pipeline_rate(self, count: int) -> float:
        """Images/s in full batches."""
        return count / _timed(lambda: self._generate(list(range(count))))

    async def engine_ms(self, count: int) -> list[float]:
        """Milliseconds of each image, one after another."""
        taken = []
        for seed in range(count):
            started = time.perf_counter()
            await self.draw(seed)
            taken.append((time.perf_counter() - started) * 1000)
        return taken

    async def engine_rate(self, count: int, uses: tuple[tuple[AdapterUse, ...], ...] = ((),)) -> float:
        """Images/s, `2 x batch` in flight; uses: adapters that images take in turn."""
        slots = asyncio.Semaphore(2 * self.batch)

        async def one(seed: int) -> None:
            async with slots:
                await self.draw(seed, uses[seed % len(uses)])

        started = time.perf_counter()
        await asyncio.gather(*(one(seed) for seed in range(count)))
        return count / (time.perf_counter() - started)

    async def draw(self, seed: int, uses: tuple[AdapterUse, ...] = (), **changes: Any) -> Any:
        """One image of the engine."""
        asked: dict[str, Any] = {"num_inference_steps": self.steps, "guidance_scale": self.guidance, **changes}
        return await self.engine.draw(ImageRequest(PROMPT, seed, adapters=uses, **asked))

    def _generate(self, seeds: list[int]) -> None:
        generate(
            self.pipe,
            [PROMPT] * len(seeds),
            seeds=seeds,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            batch_size=self.batch,
        )


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
