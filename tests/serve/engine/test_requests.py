"""Requests and settings that make no sense are refused in one line, before anything is drawn."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from serve.engine.engine import ServingEngine
from serve.engine.request import AdapterUse, ImageRequest
from serve.engine.settings import EngineSettings
from tests.serve.engine.plain import running, small

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"num_inference_steps": 0}, "num_inference_steps = 0: give at least 1"),
    ({"num_inference_steps": 60, "scheduler": "lcm"}, "num_inference_steps = 60: "),
    ({"seed": -1}, r"seed = -1: give 0 to 2\*\*64 - 1"),
    ({"scheduler": "euler_b"}, "scheduler 'euler_b': did you mean 'euler_a'"),
    ({"height": 65}, "height = 65: images have multiples of 8 pixels, try 64"),
    ({"width": 0}, "width = 0: images have multiples of 8 pixels, try 8"),
    ({"guidance_scale": float("nan")}, "guidance_scale = nan: give a finite number"),
    ({"adapters": (AdapterUse("a", up=float("inf")),)}, "up of adapter 'a' = inf: give a finite number"),
    ({"adapters": (AdapterUse("a"), AdapterUse("a"))}, "adapter 'a' is named twice"),
    ({"adapters": (AdapterUse("a"),)}, "adapter 'a': there are none here"),
]


def test_wrong_requests_are_refused() -> None:
    async def main() -> None:
        async with running(ServingEngine(Base(), settings=small())) as engine:
            for changes, message in WRONG:
                with pytest.raises(UserError, match=message):
                    await engine.draw(ImageRequest(**{"prompt": "a dog", "seed": 1, **changes}))
            assert engine.status()["steps"] == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_batch": 0}, "greater than or equal to 1"),
        ({"max_cached_adapters": 0}, "greater than or equal to 1"),
        ({"cached_prompts": -1}, "greater than or equal to 0"),
        ({"dtype": "fp16"}, "'fp32' or 'bf16'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EngineSettings(**settings)


def test_an_adapter_that_is_fused_must_be_there() -> None:
    with pytest.raises(UserError, match="fuse = 'dog': there are no adapters"):
        ServingEngine(Base(), fuse="dog")
