"""A picture is the plain pipeline's to within one 8-bit level, alone and beside any others."""

from __future__ import annotations

import asyncio
import random

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from sdxl_ray.artifact import Artifact
from sdxl_ray.core.pipeline import load_pipeline
from sdxl_ray.sections import Base
from serve.engine.engine import Engine
from serve.engine.request import SCHEDULERS, AdapterUse, Drawn, PictureRequest
from tests.serve.engine.plain import Plain, differences, draw_with, levels, running, small

PROMPTS = ("a photo of a dog", "a red robot on the beach", "", "a cat, watercolour")


def test_each_scheduler_draws_the_pipelines_picture(plain: Plain) -> None:
    many = [
        PictureRequest(PROMPTS[1], 5, num_inference_steps=steps, scheduler=scheduler, guidance_scale=4)
        for steps, scheduler in enumerate(("default", *SCHEDULERS), start=3)
    ]

    async def main() -> None:
        async with running(Engine(Base(), settings=small())) as engine:
            together = await asyncio.gather(*[engine.draw(request) for request in many])
            alone = [await engine.draw(request) for request in many]
        expected = [plain.draw(request) for request in many]
        assert max(differences([one.picture for one in together], expected)) <= 1
        assert differences([one.picture for one in alone], expected) == [0] * len(many)

    asyncio.run(main())


def test_a_base_without_zeros_encodes_its_empty_prompt() -> None:
    pipe = load_pipeline(Base(), None, dtype=torch.float32, device="cpu")
    other = StableDiffusionXLPipeline(**pipe.components, force_zeros_for_empty_prompt=False)
    request = PictureRequest(PROMPTS[0], 3, num_inference_steps=3)

    async def main() -> None:
        async with running(Engine(Base(), pipeline=other, settings=small())) as engine:
            drawn = await engine.draw(request)
        assert levels(drawn.picture, draw_with(other, request)) == 0
        assert levels(drawn.picture, draw_with(pipe, request)) > 3

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
    requests = [PictureRequest(PROMPTS[0], 7, num_inference_steps=4, adapters=use) for use in uses]

    async def main() -> None:
        async with running(Engine(Base(), adapters=loras, settings=small())) as engine:
            drawn = await asyncio.gather(*[engine.draw(request) for request in requests])
            again = await engine.draw(requests[0])
        pictures = [one.picture for one in drawn]
        assert max(differences(pictures, [plain.draw(request) for request in requests])) <= 1
        assert levels(again.picture, pictures[0]) <= 1
        for i, one in enumerate(pictures):  # each is another picture: nothing was silently left out
            assert all(levels(one, other) > 3 for other in pictures[:i])

    asyncio.run(main())


def _random_request(rng: random.Random) -> PictureRequest:
    size = rng.choice([(None, None), (48, 80), (32, 32)])
    names = rng.sample(["round", "sharp", "wordy"], rng.choice([0, 0, 1, 1, 2]))
    return PictureRequest(
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

    async def late(engine: Engine, request: PictureRequest, seconds: float) -> Drawn:
        await asyncio.sleep(seconds)
        return await engine.draw(request)

    async def main() -> None:
        settings = small(max_batch=4, max_resident=2, cached_prompts=3)
        async with running(Engine(Base(), adapters=loras, settings=settings)) as engine:
            drawn = await asyncio.gather(*[late(engine, r, rng.uniform(0, number / 12)) for r in requests])
            assert engine.status()["in_flight"] == engine.status()["waiting"] == 0
        for request, one in zip(requests, drawn, strict=True):
            assert levels(one.picture, plain.draw(request)) <= 1, request

    asyncio.run(main())
