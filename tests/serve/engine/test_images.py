"""An image is the plain pipeline's to within one 8-bit level, alone and beside any others."""

from __future__ import annotations

import asyncio
import random

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from sdxl_ray.config.schema import Base
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.models.pipeline import load_pipeline
from serve.engine.engine import ServingEngine
from serve.engine.request import SCHEDULERS, AdapterUse, Drawn, ImageRequest
from tests.serve.engine.plain import Plain, differences, draw_with, levels, running, small

PROMPTS = ("a photo of a dog", "a red robot on the beach", "", "a cat, watercolour")


def test_each_scheduler_draws_the_pipelines_image(plain: Plain) -> None:
    many = [
        ImageRequest(PROMPTS[1], 5, num_inference_steps=steps, scheduler=scheduler, guidance_scale=4)
        for steps, scheduler in enumerate(("default", *SCHEDULERS), start=3)
    ]

    async def main() -> None:
        async with running(ServingEngine(Base(), settings=small())) as engine:
            together = await asyncio.gather(*[engine.draw(request) for request in many])
            alone = [await engine.draw(request) for request in many]
        expected = [plain.draw(request) for request in many]
        assert max(differences([one.image for one in together], expected)) <= 1
        assert differences([one.image for one in alone], expected) == [0] * len(many)

    asyncio.run(main())


def test_a_base_without_zeros_encodes_its_empty_prompt() -> None:
    pipe = load_pipeline(Base(), None, dtype=torch.float32, device="cpu")
    other = StableDiffusionXLPipeline(**pipe.components, force_zeros_for_empty_prompt=False)
    request = ImageRequest(PROMPTS[0], 3, num_inference_steps=3)

    async def main() -> None:
        async with running(ServingEngine(Base(), pipeline=other, settings=small())) as engine:
            drawn = await engine.draw(request)
        assert levels(drawn.image, draw_with(other, request)) == 0
        assert levels(drawn.image, draw_with(pipe, request)) > 3

    asyncio.run(main())


def test_adapters_with_weights_and_block_groups_draw_what_set_adapters_draws(
    plain: Plain, loras: dict[str, Artifact]
) -> None:
    uses = [
        (),
        (AdapterUse("round", 0.8),),
        (AdapterUse("sharp", 0.5),),
        (AdapterUse("wordy", 0.9),),
        (AdapterUse("round", 0.7, down=0.2, mid=1.5, up=0.9),),
        (AdapterUse("round", 0.7, down=1.0, mid=0.0, up=-0.3), AdapterUse("wordy", 0.6, down=0.5, mid=2.0, up=1.0)),
        (AdapterUse("round", 0.4), AdapterUse("sharp", 0.3), AdapterUse("wordy", 0.5)),
    ]
    requests = [ImageRequest(PROMPTS[0], 7, num_inference_steps=4, adapters=use) for use in uses]

    async def main() -> None:
        async with running(ServingEngine(Base(), adapters=loras, settings=small())) as engine:
            drawn = await asyncio.gather(*[engine.draw(request) for request in requests])
            again = await engine.draw(requests[0])
        images = [one.image for one in drawn]
        assert max(differences(images, [plain.draw(request) for request in requests])) <= 1
        assert levels(again.image, images[0]) <= 1
        for i, one in enumerate(images):  # each is another image: nothing was silently left out
            assert all(levels(one, other) > 3 for other in images[:i])

    asyncio.run(main())


def _random_request(rng: random.Random) -> ImageRequest:
    size = rng.choice([(None, None), (48, 80), (32, 32)])
    names = rng.sample(["round", "sharp", "wordy"], rng.choice([0, 0, 1, 1, 2]))
    return ImageRequest(
        rng.choice(PROMPTS),
        seed=rng.randrange(2**32),
        negative_prompt=rng.choice([None, None, "", "blurry"]),
        num_inference_steps=rng.randint(1, 12),
        guidance_scale=rng.choice([0.0, 1.0, 2.5, 7.5]),
        height=size[0],
        width=size[1],
        scheduler=rng.choice(["default", *SCHEDULERS]),
        adapters=tuple(AdapterUse(name, rng.uniform(0.2, 0.9)) for name in names),
    )


@pytest.mark.parametrize("number", [8, pytest.param(24, marks=pytest.mark.exhaustive)])
def test_random_mixes_that_come_and_go(plain: Plain, loras: dict[str, Artifact], number: int) -> None:
    rng = random.Random(number)
    requests = [_random_request(rng) for _ in range(number)]

    async def late(engine: ServingEngine, request: ImageRequest, seconds: float) -> Drawn:
        await asyncio.sleep(seconds)
        return await engine.draw(request)

    async def main() -> None:
        settings = small(max_batch=4, max_cached_adapters=2, cached_prompts=3)
        async with running(ServingEngine(Base(), adapters=loras, settings=settings)) as engine:
            drawn = await asyncio.gather(*[late(engine, r, rng.uniform(0, number / 12)) for r in requests])
            assert engine.status()["in_flight"] == engine.status()["waiting"] == 0
        for request, one in zip(requests, drawn, strict=True):
            assert levels(one.image, plain.draw(request)) <= 1, request

    asyncio.run(main())
