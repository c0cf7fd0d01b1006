"""A recipe's warm-up that does not fit fewer steps is scaled and reported; one that a person asks for is not."""

from __future__ import annotations

import pytest

from sdxl_ray.config.notes import recipe_notes
from sdxl_ray.config.recipe import load, override
from sdxl_ray.errors import UserError
from tests.conftest import Here


def test_fewer_steps_scale_the_recipes_warm_up() -> None:
    lora = load("lora")
    assert (lora.optim.warmup_steps, lora.optim.steps) == (25, 800)
    assert override(lora, {"optim.steps": 20}).optim.warmup_steps == 0
    longer = override(lora, {"optim.steps": 400, "optim.warmup_steps": 100})
    short = override(longer, {"optim.steps": 40})
    assert short.optim.warmup_steps == 10
    assert short.identity == override(lora, {"optim.steps": 40, "optim.warmup_steps": 10}).identity
    (note,) = [note for note in recipe_notes(override(short, {"seed": 1})) if "warmup" in note]
    assert "optim.warmup_steps=100 does not fit optim.steps=40: scaled to 10" in note


@pytest.mark.parametrize("steps", [26, 100, 500, 1000])
def test_a_warm_up_that_fits_stays(steps: int) -> None:
    recipe = override(load("lora"), {"optim.steps": steps})
    assert recipe.optim.warmup_steps == 25
    assert not [note for note in recipe_notes(recipe) if "scaled" in note]


def test_a_warm_up_that_is_asked_for_is_refused_with_the_fix() -> None:
    with pytest.raises(UserError, match="warmup_steps 60 must be below steps 40: set warmup_steps=2, or more steps"):
        override(load("lora"), {"optim.steps": 40, "optim.warmup_steps": 60})


def test_the_command_line_says_so(here: Here) -> None:
    code, out, err = here("plan", "lora", "optim.steps=20", "--gpu", "h100")
    assert code == 0
    assert "optim.warmup_steps=25 does not fit optim.steps=20: scaled to 0" in out + err
