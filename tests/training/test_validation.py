"""The validation loss is computed in batches, and is the mean of what each term gives alone."""

from __future__ import annotations

import math

import pytest

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.config.schema import Data
from sdxl_ray.data.batch_sampler import validation_examples
from sdxl_ray.training.validation import _batch_size, _batches
from tests.data.test_batch_sampler import MIXED
from tests.running import Train


def test_batches_give_the_mean_of_single_terms(train: Train, recipe: Recipe) -> None:
    """Photos of several shapes, so that batches of different buckets are kept apart."""
    shapes = {"data.holdout": 4, "data.resolution": 32, "evaluation.draws": 3, "optim.steps": 1, "optim.batch_size": 1}
    alone = train(override(recipe, {**shapes, "parallel.micro_batch": 1}), "alone")
    forwards: list[int] = []

    def counted(engine: object) -> None:
        denoiser = engine.denoiser  # type: ignore[attr-defined]  # a training engine

        def hook(module: object, inputs: tuple[object, ...], _: object) -> None:
            if not module.training:  # type: ignore[attr-defined]  # validation alone, not the training step
                forwards.append(len(inputs[0]))  # type: ignore[arg-type]

        denoiser.register_forward_hook(hook)

    many = train(override(recipe, {**shapes, "optim.batch_size": 4}), "many", spoil=counted)
    expected = alone.of("validation")[0]
    found = many.of("validation")[0]
    assert found["n"] == expected["n"] == 12
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert math.isfinite(found["loss"])
    assert max(forwards) == 4


def test_a_batch_has_one_bucket_and_every_term_is_in_one() -> None:
    examples = validation_examples(MIXED, Data(class_name="dog"), 512)
    batches = _batches(examples, 3, 4)
    assert len({example.view.bucket for example in examples}) == 3
    assert sorted(term for batch in batches for term in batch) == list(range(3 * len(examples)))
    assert all(len({examples[term // 3].view.bucket for term in batch}) == 1 for batch in batches)
    assert max(map(len, batches)) <= 4


def test_a_large_global_batch_is_not_one_forward(recipe: Recipe) -> None:
    """64 over 8 workers are 8 at once in training; the number of workers is not known to the value."""
    wide = {"optim.batch_size": 64, "parallel.micro_batch": None}
    assert _batch_size(override(recipe, wide)) == 8
    assert _batch_size(override(recipe, {**wide, "optim.batch_size": 3})) == 3
    assert _batch_size(override(recipe, {**wide, "parallel.micro_batch": 16})) == 16
