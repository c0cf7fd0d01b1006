"""Ray's plain recipe: `@serve.batch` around a pipeline, as a practitioner writes it from the documentation.

A batch is what arrived while the last one was drawn. The pipeline takes one step count at a time, so a batch of several
counts is drawn count by count, and every image of it is answered when its own count is done.
"""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import torch
from ray import serve
from starlette.requests import Request

from sdxl_ray.config.schema import Base
from sdxl_ray.models.pipeline import load_pipeline


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Recipe:
    """POST an image's settings, get a PNG in the shape of OpenAI's answer."""

    def __init__(self) -> None:
        self._pipe = load_pipeline(Base(), None, dtype=torch.float32, device="cpu")
        self._pipe.set_progress_bar_config(disable=True)

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.01)
    async def draw(self, asked: list[dict[str, Any]]) -> list[str]:
        """An image each, as base64."""
        return await asyncio.to_thread(self._draw, asked)

    def _draw(self, asked: list[dict[str, Any]]) -> list[str]:
        drawn: dict[int, str] = {}
        for steps in sorted({one["num_inference_steps"] for one in asked}):
            places = [place for place, one in enumerate(asked) if one["num_inference_steps"] == steps]
            images = self._pipe(
                [asked[place]["prompt"] for place in places],
                generator=[torch.Generator("cpu").manual_seed(asked[place]["seed"]) for place in places],
                num_inference_steps=steps,
                guidance_scale=asked[places[0]]["guidance_scale"],
            ).images
            for place, image in zip(places, images, strict=True):
                file = io.BytesIO()
                image.save(file, format="PNG")
                drawn[place] = base64.b64encode(file.getvalue()).decode()
        return [drawn[place] for place in range(len(asked))]

    async def __call__(self, request: Request) -> dict[str, Any]:
        """One request."""
        return {"data": [{"b64_json": await self.draw(await request.json())}]}
