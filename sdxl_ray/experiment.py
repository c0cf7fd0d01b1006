"""Experiment: arms that are trained under equal conditions, from `sdxl_ray/recipes/experiments/*.yaml` or a file.

description: what is compared
settings: {data.images: photos/dog, …}            # dotted settings of every arm
prompts: dreambooth_objects                       # how they are judged; also seeds, class_pictures
load: {rates: [2], queries: 16}                   # base and arms behind one endpoint, under load
arms:
  lora: {recipe: lora, settings: {tuning.rank: 8}}
"""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from typing import Annotated, Any

from pydantic import Field, PositiveInt, ValidationError

from sdxl_ray import plain_data
from sdxl_ray.config import Recipe, Section, load, override
from sdxl_ray.errors import UserError
from sdxl_ray.loadprofile import LoadProfile
from sdxl_ray.schema_errors import first_problem


class Arm(Section):
    """One way of tuning: a recipe by name or file, and what is different about it."""

    recipe: str
    settings: dict[str, Any] = {}


class Experiment(Section):
    """What is compared, and the settings that hold for every arm."""

    description: str = ""
    settings: dict[str, Any] = {}
    prompts: str | None = Field(None, description="list to judge by: shipped name, .yaml or .txt; default: by base")
    seeds: PositiveInt = Field(4, description="pictures per prompt and model")
    class_pictures: Annotated[int, Field(ge=2)] = Field(16, description="pictures of the plain class per model")
    load: LoadProfile | None = Field(None, description="load test of the base and every arm; null: none")
    arms: Annotated[dict[str, Arm], Field(min_length=1)]

    def recipes(self, changes: dict[str, Any]) -> dict[str, Recipe]:
        """The complete recipe of each arm; `changes` (the command line's) win over everything.

        Raises UserError that names the arm.
        """
        recipes = {}
        for name, arm in self.arms.items():
            try:
                recipes[name] = override(load(arm.recipe), {**self.settings, **arm.settings, **changes})
                recipes[name].require_complete()
            except UserError as error:
                raise UserError(f"arm {name!r}: {error}") from None
        return recipes


def names() -> list[str]:
    """Names of the experiments shipped with the package."""
    return plain_data.shipped(_folder())


def load_experiment(name_or_path: str) -> Experiment:
    """Read a shipped experiment by name (`demo`) or a YAML file. Raises UserError, one line."""
    plain = plain_data.read(name_or_path, _folder(), "experiment")
    try:
        return Experiment.model_validate(plain)
    except ValidationError as error:
        raise UserError(f"{name_or_path}: {first_problem(error, Experiment, plain)}") from None


def _folder() -> Traversable:
    return resources.files("sdxl_ray") / "recipes" / "experiments"
