"""What the trials of a search need at most."""

from __future__ import annotations

from typing import Any

from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.config.search_parameters import tried
from sdxl_ray.config.search_space import Space
from sdxl_ray.errors import UserError
from sdxl_ray.plan import Device, Plan


def largest(space: Space, recipe: Recipe, device: Device) -> tuple[dict[str, Any], Plan]:
    """What the trial that needs most memory changes, and its plan.

    Each parameter has the value that needs most while the others are as in the recipe; those that need the same at
    every value stay as they are.
    """
    changes: dict[str, Any] = {}
    for path, parameter in space.parameters.items():
        needs = []
        for value in tried(parameter):
            try:
                plan = Plan.of(override(recipe, {path: value}), device)
            except UserError:  # only together with another parameter, or a fraction of a whole number
                continue
            needs.append((plan.memory.needed_bytes, value))
        needs.sort(key=lambda need: need[0])
        if needs and needs[-1][0] > needs[0][0]:
            changes[path] = needs[-1][1]
    return changes, Plan.of(override(recipe, changes), device)
