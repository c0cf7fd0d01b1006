"""Experiment: arms that are trained under equal conditions, from `sdxl_ray/recipes/experiments/*.yaml` or a file.

description: what is compared
settings: {data.images: photos/dog, …}            # dotted settings of every arm
prompts: dreambooth_objects                       # how they are judged; also seeds, class_images, steps
load: {rates: [2], queries: 16}                   # base and arms behind one endpoint, under load
arms:
  lora: {recipe: lora, settings: {tuning.rank: 8}}

With `subjects` every arm is trained on each of them, with `training_seeds` once per seed: one run each, and scores over
all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import product
from typing import Annotated, Any

from pydantic import Field, PositiveInt, field_validator

from sdxl_ray.config import plain_data
from sdxl_ray.config.load_profile import LoadProfile
from sdxl_ray.config.recipe import Recipe, load, override
from sdxl_ray.config.schema import ImagesPath, Section
from sdxl_ray.config.schema_errors import validated
from sdxl_ray.errors import UserError

#: Part of a folder's name, and a row of every table.
ArmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.+ -]*[A-Za-z0-9_+-])?$")]
#: Rows of the tables that are no arms.
_TAKEN = ("base", "real", "other")


class ArmSettings(Section):
    """One way of tuning: a recipe by name or file, and what is different about it."""

    recipe: str
    settings: dict[str, Any] = {}


class Taught(Section):
    """A subject: the settings that name its photos and words, and another of its class as a reference."""

    settings: Annotated[dict[str, Any], Field(min_length=1)]
    other: ImagesPath | None = Field(
        None, description="photos of another subject of the class: the floor of the scores"
    )


@dataclass(frozen=True)
class ArmRun:
    """One training of an arm. label: its subject and seed where there are several, else empty."""

    arm: str
    subject: str
    label: str
    recipe: Recipe

    def named(self, experiment: str) -> str:
        """The name of its run folder."""
        return "-".join(filter(None, (experiment, self.arm, self.label)))


class Experiment(Section):
    """What is compared, and the settings that hold for every arm."""

    description: str = ""
    settings: dict[str, Any] = {}
    prompts: str | None = Field(None, description="list to judge by: shipped name, .yaml or .txt; default: by base")
    seeds: PositiveInt = Field(4, description="images per prompt and model")
    class_images: Annotated[int, Field(ge=2)] = Field(16, description="images of the plain class per model")
    steps: tuple[PositiveInt, ...] = Field(
        (), description="denoising steps to draw with besides: steps against quality"
    )
    step_seeds: PositiveInt = Field(1, description="images per prompt and model for each of `steps`")
    other: ImagesPath | None = Field(
        None, description="photos of another subject of the class: the floor of the scores"
    )
    subjects: dict[ArmName, Taught] = Field({}, description="every arm is trained on each of them")
    training_seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((), description="every arm is trained with each")
    load: LoadProfile | None = Field(None, description="load test of the base and every arm; null: none")
    arms: Annotated[dict[ArmName, ArmSettings], Field(min_length=1)]

    @field_validator("arms")
    @classmethod
    def _names_are_free(cls, arms: dict[str, ArmSettings]) -> dict[str, ArmSettings]:
        for name in arms:
            if name in _TAKEN:
                raise ValueError(f"an arm cannot be called {name!r}, a row of every table is: give another name")
        return arms

    @field_validator("steps", "training_seeds")
    @classmethod
    def _once(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(values)) < len(values):
            raise ValueError("the same number twice: keep one")
        return values

    def runs(self, changes: dict[str, Any]) -> list[ArmRun]:
        """Every training with its complete recipe, seed by seed, so that a cut leaves whole rounds.

        `changes` (the command line's) win over everything. Raises UserError that names the arm and the subject.
        """
        seeds: list[dict[str, Any]] = [{"seed": seed} for seed in self.training_seeds] or [{}]
        subjects = {name: taught.settings for name, taught in self.subjects.items()} or {"": {}}
        found = []
        for seed, (subject, taught), (name, arm) in product(seeds, subjects.items(), self.arms.items()):
            label = "-".join([*filter(None, [subject]), *(str(number) for number in seed.values())])
            try:
                settings = {**self.settings, **taught, **arm.settings, **seed, **changes}
                recipe = override(load(arm.recipe), settings)
                recipe.require_complete()
            except UserError as error:
                about = f", subject {subject!r}" if subject else ""
                raise UserError(f"arm {name!r}{about}: {error}") from None
            found.append(ArmRun(name, subject, label, recipe))
        _require_own_folders(found)
        return found


def _require_own_folders(runs: list[ArmRun]) -> None:
    """Raise UserError when two runs, or a run and the comparison itself, would have one folder."""
    taken: dict[str, str] = {"comparison": "the comparison itself"}
    for run in runs:
        what = f"arm {run.arm!r}{f' on {run.label!r}' if run.label else ''}"
        folder = run.named("")
        if folder in taken:
            raise UserError(f"{what} would have the folder of {taken[folder]}, EXPERIMENT-{folder}: rename the arm")
        taken[folder] = what


def names() -> list[str]:
    """Names of the experiments shipped with the package."""
    return plain_data.shipped(_folder())


def load_experiment(name_or_path: str) -> Experiment:
    """Read a shipped experiment by name (`demo`) or a YAML file. Raises UserError, one line."""
    plain = plain_data.read(name_or_path, _folder(), "experiment")
    return validated(Experiment, plain, name_or_path)


def _folder() -> Traversable:
    return resources.files("sdxl_ray") / "recipes" / "experiments"
