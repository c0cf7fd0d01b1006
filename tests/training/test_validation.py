"""The validation loss is computed in batches, and is the mean of what each term gives alone."""

from __future__ import annotations

import math

import pytest

from sdxl_ray.config.recipe import Recipe, override
from tests.running import Train


def test_batches_give_the_mean_of_single_terms(train: Train, recipe: Recipe) -> None:
    """Photos of several shapes, so that batches of different buckets are kept apart."""
    shapes = {"data.holdout": 4, "data.resolution": 32, "evaluation.draws": 3, "optim.steps": 1, "optim.batch_size": 1}
    alone = train(override(recipe, {**shapes, "parallel.micro_batch": 1}), "alone")
    forwards: list[int] = []

    def counted(engine: object) -> None:
        denoiser = engine.denoiser  # type: ignore[attr-defined]  # a training engine
        denoiser.register_forward_hook(lambda _m, inputs, _o: forwards.append(len(inputs[0])))

    many = train(override(recipe, {**shapes, "optim.batch_size": 4}), "many", spoil=counted)
    expected = alone.of("validation")[0]
    found = many.of("validation")[0]
    assert found["n"] == expected["n"] == 12
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert math.isfinite(found["loss"])
    assert max(forwards) == 4
