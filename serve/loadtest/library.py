"""The library of a load test: (prompt, seed, steps) triples that LoadGen draws from, the same for every arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdxl_ray.evaluation.prompts import fill, load_prompts
from serve.loadtest.config import LoadArm, LoadTest

#: Distinct requests. LoadGen draws them with replacement, as its Server scenario does.
SIZE = 64


@dataclass(frozen=True)
class Sample:
    """One request of the library."""

    prompt: str
    seed: int
    steps: int


def library(settings: LoadTest) -> list[Sample]:
    """The samples of a load test, from its settings alone. Raises UserError for a prompt list that cannot be read."""
    prompts = [fill(prompt, settings.subject) for prompt in load_prompts(settings.prompts).of("final")]
    size = max(SIZE, len(prompts))
    counts = shares(settings.mix, size)
    steps = np.repeat(list(counts), list(counts.values()))
    np.random.default_rng(settings.seed).shuffle(steps)
    return [Sample(prompts[i % len(prompts)], settings.seed + i, int(steps[i])) for i in range(size)]


def shares(weights: Mapping[int, float], size: int) -> dict[int, int]:
    """`size` split by weights (largest remainders), so that a mix is what was asked for and not a draw of it."""
    total = sum(weights.values())
    exact = {key: size * weight / total for key, weight in weights.items()}
    counts = {key: int(value) for key, value in exact.items()}
    missing = size - sum(counts.values())
    for key in sorted(exact, key=lambda key: (counts[key] - exact[key], key))[:missing]:
        counts[key] += 1
    return counts


def payloads(settings: LoadTest, arm: LoadArm, samples: Sequence[Sample]) -> list[list[dict[str, Any]]]:
    """The body of each sample for each model of the arm in turn: `payloads[turn][sample]`."""
    common: dict[str, Any] = {
        "n": 1,
        "size": settings.size,
        "response_format": "b64_json",
        "output_format": "png",
        "guidance_scale": settings.guidance,
    }
    if arm.adapters:
        common["adapters"] = [adapter.model_dump(mode="json") for adapter in arm.adapters]
    return [
        [
            {"model": model, "prompt": s.prompt, "seed": s.seed, "num_inference_steps": s.steps, **common}
            for s in samples
        ]
        for model in arm.model
    ]
