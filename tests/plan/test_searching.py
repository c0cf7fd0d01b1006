"""What the largest trial of a search needs is known, and said, before the search begins."""

from __future__ import annotations

from sdxl_ray.config.recipe import override
from sdxl_ray.config.search_space import load_space
from sdxl_ray.plan import Plan, device
from sdxl_ray.plan.search_cost import largest
from tests.conftest import Here


def test_the_largest_trial_is_that_of_the_largest_values() -> None:
    space = load_space("lora")
    recipe = space.start({})
    changes, plan = largest(space, recipe, device("4090"))
    assert changes == {
        "tuning.rank": 64,
        "tuning.text_encoders": [1, 2],
        "tuning.target_modules": ["to_q", "to_k", "to_v", "to_out.0"],
    }
    for path, value in changes.items():
        alone = Plan.of(override(recipe, {path: value}), device("4090"))
        assert Plan.of(recipe, device("4090")).memory.needed_bytes <= alone.memory.needed_bytes
        assert alone.memory.needed_bytes < plan.memory.needed_bytes


def test_what_has_no_room_is_said_and_the_search_goes_on(here: Here) -> None:
    words = ("tune", "lora", "data.images=subject:dog", "data.subject=sks dog", "data.class_name=dog")
    said = "the largest trial (rank 64"
    _, _, err = here(*words, "--gpu-memory", "12GiB", "--address", "127.0.0.1:1")
    assert f"{said}, text_encoders [1, 2], target_modules ['to_q'" in err
    assert "needs 12.5 GiB" in err
    _, _, err = here(*words, "--gpu-memory", "16GiB", "--address", "127.0.0.1:1")
    assert said not in err
