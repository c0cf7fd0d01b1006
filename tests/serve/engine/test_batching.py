"""Images join and leave between steps: counted in steps, never in seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from PIL import Image

from sdxl_ray.config.schema import Base
from sdxl_ray.errors import RunError
from serve.engine.engine import ServingEngine
from serve.engine.request import DeadlinePassed, EngineStopped, ImageRequest
from tests.serve.engine.plain import Plain, levels, running, small


def _quick(seed: int, steps: int, **changes: Any) -> ImageRequest:
    """An image whose steps are short: small, and without guidance."""
    settings = {"height": 32, "width": 32, "guidance_scale": 1.0, **changes}
    return ImageRequest("a dog", seed, num_inference_steps=steps, **settings)


class Progress:
    """An `on_step` that remembers, and lets a test wait for a step."""

    def __init__(self) -> None:
        self.done = 0
        self.total = 0
        self.preview: Callable[[], Image.Image] | None = None
        self._waiting: list[tuple[int, asyncio.Event]] = []

    def __call__(self, done: int, total: int, preview: Callable[[], Image.Image] | None) -> None:
        self.done, self.total, self.preview = done, total, preview
        for step, event in self._waiting:
            if done >= step:
                event.set()

    async def reach(self, step: int) -> None:
        """Wait until that many steps are done."""
        event = asyncio.Event()
        self._waiting.append((step, event))
        if self.done < step:
            await asyncio.wait_for(event.wait(), 60)


def test_a_short_image_does_not_wait_for_a_long_one() -> None:
    async def main() -> None:
        async with running(ServingEngine(Base(), settings=small())) as engine:
            progress = Progress()
            long = asyncio.create_task(engine.draw(_quick(1, 100), on_step=progress))
            await progress.reach(5)
            short = await engine.draw(_quick(2, 4))
            assert progress.done < 60
            assert not long.done()
            assert short.times.batch_mean == 2
            drawn = await long
            assert (progress.done, progress.total) == (100, 100)
            assert drawn.times.batch_mean == pytest.approx(1.04)
            assert engine.status()["steps"] == 100

    asyncio.run(main())


def test_a_cancelled_image_frees_its_place_within_a_step() -> None:
    async def main() -> None:
        async with running(ServingEngine(Base(), settings=small(max_batch=1))) as engine:
            progress = Progress()
            long = asyncio.create_task(engine.draw(_quick(1, 1000), on_step=progress))
            await progress.reach(3)
            following = asyncio.create_task(engine.draw(_quick(2, 4)))
            waiting = asyncio.create_task(engine.draw(_quick(3, 4)))
            await asyncio.sleep(0)
            assert engine.status()["waiting"] == 2
            waiting.cancel()
            long.cancel()
            taken = engine.status()["steps"]
            await following
            # One step may be under way, and one report of a step on its way to this loop.
            assert engine.status()["steps"] <= taken + 2 + 4
            with pytest.raises(asyncio.CancelledError):
                await long
            while engine.status()["abandoned"] < 2:
                await asyncio.sleep(0.001)
            assert engine.status()["drawn"] == 1

    asyncio.run(main())


def test_a_deadline_ends_an_image_and_no_other() -> None:
    async def main() -> None:
        async with running(ServingEngine(Base(), settings=small())) as engine:
            other = asyncio.create_task(engine.draw(_quick(1, 10)))
            with pytest.raises(DeadlinePassed, match=r"not finished 0\.3 s after"):
                await engine.draw(_quick(2, 1000), deadline=time.monotonic() + 0.3)
            with pytest.raises(DeadlinePassed):
                await engine.draw(_quick(2, 1), deadline=time.monotonic() - 1)
            await other
            await engine.draw(_quick(2, 1), deadline=time.monotonic() + 60)
            assert engine.status()["drawn"] == 2
            assert engine.status()["in_flight"] == 0

    asyncio.run(main())


def test_sizes_take_turns() -> None:
    async def main() -> None:
        async with running(ServingEngine(Base(), settings=small())) as engine:
            turns: list[int] = []
            many = [
                engine.draw(_quick(size, 12, height=size), on_step=lambda *_, size=size: turns.append(size))
                for size in (32, 32, 40, 48)
            ]
            await asyncio.gather(*many)
            assert engine.status()["steps"] in (36, 37)  # the two of one size may begin a step apart
            begin = max(turns.index(40), turns.index(48))
            both = [size for size in turns[begin:] if size != 32]
            end = min(len(both) - both[::-1].index(size) for size in (40, 48))  # one of them is done
            assert all(a != b for a, b in pairwise(both[: end - 1]))
            assert end > 12

    asyncio.run(main())


def test_an_image_that_overflows_fails_alone(plain: Plain) -> None:
    good = ImageRequest("a cat", 4, num_inference_steps=4)

    async def main() -> None:
        async with running(ServingEngine(Base(), settings=small())) as engine:
            bad = ImageRequest("a cat", 5, num_inference_steps=4, guidance_scale=1e38)
            failed, drawn = await asyncio.gather(engine.draw(bad), engine.draw(good), return_exceptions=True)
            assert isinstance(failed, RunError)
            assert str(failed) == "the UNet gave NaN or infinity for seed 5: lower guidance_scale"
            assert levels(drawn.image, plain.draw(good)) <= 1
            assert engine.status()["failed"] == 1

    asyncio.run(main())


def test_a_preview_foresees_the_image() -> None:
    async def main() -> None:
        async with running(ServingEngine(Base(), settings=small())) as engine:
            for scheduler in ("default", "dpmpp_2m", "lcm"):
                progress = Progress()
                request = ImageRequest("a dog", 3, num_inference_steps=6, scheduler=scheduler)
                drawing = asyncio.create_task(engine.draw(request, on_step=progress))
                await progress.reach(3)
                assert progress.preview is not None
                half = await asyncio.to_thread(progress.preview)
                drawn = await drawing
                assert half.size == (64, 64)
                assert levels(progress.preview(), drawn.image) <= 1

    asyncio.run(main())


def test_stopping_ends_what_is_in_flight() -> None:
    async def main() -> None:
        engine = ServingEngine(Base(), settings=small(max_batch=1))
        await engine.start()
        progress = Progress()
        many = [asyncio.create_task(engine.draw(_quick(i, 1000), on_step=progress)) for i in range(3)]
        await progress.reach(2)
        await engine.stop()
        for outcome in await asyncio.gather(*many, return_exceptions=True):
            assert isinstance(outcome, EngineStopped)
        with pytest.raises(EngineStopped, match="start it first"):
            await engine.draw(_quick(1, 1))
        await engine.stop()

    asyncio.run(main())
