"""The engine against eager diffusers, both on one set of random weights: the figures of a GPU, or the same code here.

Everything is in this process but the last two rows, which are the same weights through Ray Serve.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from child import answer
from overhttp import SHARE, over_http
from servearms import ServeArm

Row = dict[str, Any]

LATENCY_STEPS, LCM_STEPS = 30, 4
_GUIDANCE = 7.5


def measure(arm: ServeArm, folder: Path) -> dict[str, Any]:
    """Rows of (what, eager, ours, ratio, goal); ratio above 1: ours is faster, or takes so many times as long."""
    import torch
    from randomparts import random_pipeline

    from sdxl_ray.config.recipe import load
    from sdxl_ray.config.schema import Base
    from sdxl_ray.models.pipeline import decode
    from serve.engine.engine import ServingEngine
    from serve.engine.settings import EngineSettings

    settings = EngineSettings(max_batch=arm.batch, cached_prompts=0)
    pipe = random_pipeline(arm.shape, settings.place, settings.width)
    pipe.set_progress_bar_config(disable=True)
    base = Base() if arm.shape == "tiny" else load("lora").base
    from lora import random_lora

    loras = {f"lora{n}": random_lora(folder / f"lora{n}", pipe.unet, base, arm.rank, n) for n in range(2)}
    pipe.save_pretrained(folder / "base")
    eager = _Eager(pipe, arm)
    size = pipe.default_sample_size
    latents_1CHW = torch.randn(1, pipe.vae.config.latent_channels, size, size, device=settings.place)
    _say("eager diffusers")
    eager_numbers = {
        "many": eager.rate(arm.images, arm.steps),
        "one": eager.ms(arm.singles, LATENCY_STEPS, _GUIDANCE),
        "lcm": eager.ms(arm.singles, LCM_STEPS, 1.0),
        "decode": _median_ms(lambda: _synced(lambda: decode(pipe.vae, latents_1CHW)), arm.singles),
    }
    _say("the engine starts")
    engine = ServingEngine(base, adapters=loras, settings=settings, pipeline=pipe)
    ours = asyncio.run(_ours(arm, engine, _say))
    ours["http"] = over_http(arm, folder / "base", _GUIDANCE, _say)
    name = torch.cuda.get_device_name(0) if settings.on_gpu else "cpu"
    return {"rows": _rows(arm, eager_numbers, ours), "device": name}


class _Eager:
    """Diffusers as it is; warmed up once."""

    def __init__(self, pipe: Any, arm: ServeArm) -> None:
        self._pipe, self._arm = pipe, arm
        self._draw(arm.batch, 1, _GUIDANCE)

    def rate(self, images: int, steps: int) -> float:
        """Images/s in full batches."""
        batches = max(1, images // self._arm.batch)
        started = time.perf_counter()
        for _ in range(batches):
            self._draw(self._arm.batch, steps, _GUIDANCE)
        return batches * self._arm.batch / (time.perf_counter() - started)

    def ms(self, count: int, steps: int, guidance: float) -> float:
        """Milliseconds of one image alone."""
        self._draw(1, steps, guidance)
        return _median_ms(lambda: self._draw(1, steps, guidance), count)

    def _draw(self, images: int, steps: int, guidance: float) -> None:
        import torch

        from sdxl_ray.models.pipeline import decode

        with torch.inference_mode():
            latents_BCHW = self._pipe(
                ["a photo of a dog"] * images, num_inference_steps=steps, guidance_scale=guidance,
                output_type="latent",
            ).images  # fmt: skip
            # Images leave the device, so the clock stops when they are there.
            self._pipe.image_processor.postprocess(decode(self._pipe.vae, latents_BCHW), output_type="pil")


async def _ours(arm: ServeArm, engine: Any, say: Callable[[str], None]) -> Row:
    from inside import Inside

    from serve.engine.request import AdapterUse

    await engine.start()
    inside = Inside(None, engine, arm.steps, _GUIDANCE, arm.batch)
    one, two = (AdapterUse("lora0"),), (AdapterUse("lora1"),)
    try:
        for uses in ((), one, two):
            await inside.draw(0, uses)
        say("the engine: one at a time")
        found = {
            "one": await _one(inside, arm.singles, num_inference_steps=LATENCY_STEPS),
            "unfused": await _one(inside, arm.singles, uses=one, num_inference_steps=LATENCY_STEPS),
            "lcm": await _one(inside, arm.singles, num_inference_steps=LCM_STEPS, guidance_scale=1.0, scheduler="lcm"),
        }
        say("the engine: many at once")
        found["many"] = await inside.engine_rate(arm.images)
        found["mixed"] = await inside.engine_rate(arm.images, ((), one, two))
        found["decode"] = statistics.median([(await inside.draw(n)).times.decode_ms for n in range(arm.singles)])
        say("the engine: from one adapter to the other")
        for n in range(2 * arm.singles):
            await inside.draw(n, one if n % 2 else two, num_inference_steps=1)
        status = engine.status()
        found["swap"] = status["adapter_switch_ms"]
        found["load"] = max(status["adapter_load_ms"].values())
        return found
    finally:
        await engine.stop()


async def _one(inside: Any, count: int, uses: Any = (), **changes: Any) -> float:
    await inside.draw(0, uses, **changes)
    return statistics.median([(await inside.draw(n, uses, **changes)).times.total_ms for n in range(count)])


def _rows(arm: ServeArm, eager: Row, ours: Row) -> list[Row]:
    goals = arm.shape == "sdxl"

    def row(label: str, name: str, goal: str, *, rate: bool = False) -> Row:
        times = ours[name] / eager[name] if rate else eager[name] / ours[name]
        return {"label": label, "eager": eager[name], "ours": ours[name], "ratio": times, "goal": goal if goals else ""}

    def own(label: str, value: float, goal: str, times: float | None = None) -> Row:
        return {"label": label, "eager": None, "ours": value, "ratio": times, "goal": goal if goals else ""}

    http = ours["http"]
    return [
        row(f"images/s, many, {arm.steps} steps", "many", ">= 1.68 and >= 2.5 x", rate=True),
        row(f"ms, one alone, {LATENCY_STEPS} steps", "one", "<= 750 and >= 2.5 x"),
        row(f"ms, one alone, {LCM_STEPS} steps (LCM)", "lcm", "<= 90"),
        row("ms, VAE decode", "decode", "<= 30"),
        own("ms, from one LoRA to another, resident", ours["swap"], "<= 10"),
        own("ms, a LoRA from disk", ours["load"], ""),
        own("ms, one alone, LoRA unfused; x base", ours["unfused"], "<= 1.05 x", ours["unfused"] / ours["one"]),
        own("images/s, base and LoRAs mixed; x as long", ours["mixed"], "<= 1.10 x", ours["many"] / ours["mixed"]),
        own("images/s through Ray Serve, many; x in-process", http["offline"], "", http["offline"] / ours["many"]),
        own(
            f"s, p99 of {http['n']:.0f} at {SHARE} x that rate; x answered", http["p99_s"], "<= 20, all answered",
            http["answered"],
        ),
    ]  # fmt: skip


def _median_ms(work: Callable[[], object], count: int) -> float:
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        work()
        taken.append((time.perf_counter() - started) * 1000)
    return statistics.median(taken)


def _synced(work: Callable[[], object]) -> None:
    import torch

    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    answer(measure)
