"""Prompts of several chunks: used to their end, the same beside any others, and reported where one is cut off."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sdxl_ray.config.schema import Base
from sdxl_ray.io.artifact import Artifact
from serve.engine.engine import ServingEngine
from serve.engine.request import AdapterUse, ImageRequest, NotDrawable, Truncated
from tests.serve.engine.plain import Plain, differences, levels, running, small

SHORT = "a red robot on the beach"
LONG = " ".join(["a red robot on the beach"] * 6)  # 36 tokens: two chunks of 30
LONGER = " ".join(["a blue cat in the snow"] * 12)  # 72 tokens: three


def _request(prompt: str, **changes: Any) -> ImageRequest:
    return ImageRequest(prompt, **{"seed": 3, "num_inference_steps": 2, "guidance_scale": 4.0, **changes})


def test_prompts_of_different_lengths_share_a_batch_and_stay_what_they_are_alone(
    plain: Plain, loras: dict[str, Artifact]
) -> None:
    requests = [
        _request(SHORT),
        _request(LONG),
        _request(LONGER, num_inference_steps=3),
        _request(SHORT, negative_prompt=LONG),
        _request(LONG, adapters=(AdapterUse("wordy", 0.9),)),
        _request(LONG, max_token_length=75),
    ]

    async def main() -> None:
        async with running(ServingEngine(Base(), adapters=loras, settings=small())) as engine:
            together = [one.image for one in await asyncio.gather(*[engine.draw(request) for request in requests])]
            alone = [(await engine.draw(request)).image for request in requests]
        expected = [plain.draw(request) for request in requests]
        assert max(differences(together, expected)) <= 1
        assert max(differences(alone, expected)) <= 1
        assert levels(together[1], together[-1]) > 3  # the second chunk was used
        assert levels(together[0], together[3]) > 3

    asyncio.run(main())


def test_what_is_cut_off_a_prompt_is_reported() -> None:
    async def main() -> None:
        async with running(ServingEngine(Base(), settings=small())) as engine:
            quick = {"num_inference_steps": 1}
            assert (await engine.draw(_request("dog " * 90, **quick))).truncated == {}
            drawn = await engine.draw(_request("dog " * 90 + "a red cat", negative_prompt="dog " * 91, **quick))
            assert drawn.truncated == {
                "prompt": Truncated(93, 90, "a red cat"),
                "negative_prompt": Truncated(91, 90, "dog "),
            }
            same = await engine.draw(_request("dog " * 90, negative_prompt="dog " * 90, **quick))
            assert levels(drawn.image, same.image) == 0
            unguided = _request("a dog", negative_prompt="dog " * 91, guidance_scale=1.0, **quick)
            assert (await engine.draw(unguided)).truncated == {}  # the negative prompt is not used at all
            shorter = await engine.draw(_request("dog " * 31, max_token_length=75, **quick))
            assert shorter.truncated == {"prompt": Truncated(31, 30, "dog ")}
            with pytest.raises(NotDrawable, match=r"^max_token_length = 77: choose from 75, 150, 225$"):
                await engine.draw(_request("a dog", max_token_length=77))

    asyncio.run(main())
