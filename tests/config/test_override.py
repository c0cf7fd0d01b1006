"""Changes to a recipe: sections and kinds, and an identity that leaves out the layout."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from sdxl_ray.config.recipe import Recipe, load, override
from sdxl_ray.config.schema import FullTuning, LoraTuning


def test_a_recipe_is_frozen_and_override_makes_a_new_one() -> None:
    recipe = Recipe()
    with pytest.raises(ValidationError, match="frozen"):
        recipe.optim.lr = 1.0  # type: ignore[misc]  # what the test is about
    changed = override(recipe, {"optim.lr": 1e-3, "data.flip": True})
    assert (changed.optim.lr, changed.data.flip) == (1e-3, True)
    assert recipe.optim.lr == 1e-4


def test_a_section_given_whole_can_be_changed_on() -> None:
    changed = override(Recipe(), {"base": "folder/sdxl", "base.vae": "folder/vae"})
    assert (changed.base.id, changed.base.vae) == ("folder/sdxl", "folder/vae")


def test_another_kind_starts_from_its_own_defaults() -> None:
    full = override(load("lora"), {"tuning.kind": "full"})
    assert full.tuning == FullTuning()
    assert override(full, {"tuning.kind": "lora", "tuning.rank": 8}).tuning == LoraTuning(rank=8)


def test_a_section_that_is_off_can_be_switched_on_by_one_setting() -> None:
    prior = override(Recipe(), {"data.prior.num_class_images": 7}).data.prior
    assert prior is not None
    assert prior.num_class_images == 7
    assert override(load("dreambooth"), {"data.prior": None}).data.prior is None


def test_identity_is_what_is_computed_not_where() -> None:
    recipe = load("lora")
    same = {
        "parallel.workers": [1, 8],
        "parallel.zero_stage": 3,
        "checkpoint.every": 7,
        "resources.max_failures": 0,
    }
    assert override(recipe, same).identity == recipe.identity
    others = {"optim.lr": 2e-4, "seed": 1, "data.flip": True, "tuning.rank": 8, "base": "tiny"}
    for path, value in {**others, "parallel.precision": "fp16"}.items():
        assert override(recipe, {path: value}).identity != recipe.identity, path
