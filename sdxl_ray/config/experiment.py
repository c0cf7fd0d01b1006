"""Experiment: arms that are trained under equal conditions, from `sdxl_ray/recipes/experiments/*.yaml` or a file.

description: what is compared
settings: {data.images: photos/dog, …}            # dotted settings of every arm
prompts: dreambooth_objects                       # how they are judged; also seeds, class_images, steps
load: {rates: [2], queries: 16}                   # base and arms behind one endpoint, under load
arms:
  lora: {recipe: lora, settings: {tuning.rank: 8}}
  both: {merge: {sources: {lora: 0.7, runs/style/artifact: 0.5}, method: ties}}   # of other arms, once they are trained

With `subjects` every arm is trained on each of them, with `training_seeds` once per seed: one run each, and scores over
all of them. A merge takes the runs of its subject and seed, and those of another subject as ARM-SUBJECT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt, field_validator, model_validator

from sdxl_ray.config import plain_data
from sdxl_ray.config.load_profile import LoadProfile
from sdxl_ray.config.merging import MergedArm, Merging
from sdxl_ray.config.recipe import Recipe, load, override
from sdxl_ray.config.schema import ImagesPath, LoraTuning, Section
from sdxl_ray.config.schema_errors import validated
from sdxl_ray.errors import UserError, nearest
from sdxl_ray.paths import local_path

#: Part of a folder's name, and a row of every table.
ArmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.+ -]*[A-Za-z0-9_+-])?$")]
#: Rows of the tables that are no arms.
_TAKEN = ("base", "real", "other")


class ArmSettings(Section):
    """One way of tuning: a recipe by name or file, and what is different about it; or a merge of other arms."""

    recipe: str | None = None
    merge: MergedArm | None = None
    settings: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_way(self) -> ArmSettings:
        if (self.recipe is None) == (self.merge is None):
            raise ValueError("an arm has a recipe or a merge: give one of them")
        if self.merge is not None and self.settings:
            raise ValueError(f"settings of a merge are those of its sources: set {next(iter(self.settings))} there")
        return self


class Taught(Section):
    """A subject: the settings that name its photos and words, and another of its class as a reference."""

    settings: Annotated[dict[str, Any], Field(min_length=1)]
    other: ImagesPath | None = Field(
        None, description="photos of another subject of the class: the floor of the scores"
    )


@dataclass(frozen=True)
class ArmRun:
    """One training of an arm, or one merge. label: its subject and seed where there are several, else empty.

    merge: how it is made of `sources`, runs or artifact folders with their weights; its recipe is then that of a run
    that is judged by the same photos.
    """

    arm: str
    subject: str
    label: str
    recipe: Recipe
    merge: Merging | None = None
    sources: tuple[tuple[ArmRun | str, float], ...] = ()

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
        """Every training with its complete recipe, seed by seed, so that a cut leaves whole rounds; merges
        come after them.

        `changes` (the command line's) win over everything. Raises UserError that names the arm and the subject.
        """
        seeds: list[dict[str, Any]] = [{"seed": seed} for seed in self.training_seeds] or [{}]
        subjects = {name: taught.settings for name, taught in self.subjects.items()} or {"": {}}
        found: list[ArmRun] = []
        for seed in seeds:
            trained = [
                ArmRun(name, subject, _label(subject, seed), self._recipe(name, arm, subject, taught, seed, changes))
                for (subject, taught), (name, arm) in product(subjects.items(), self.arms.items())
                if arm.recipe is not None
            ]
            merged = [
                _merged(name, arm.merge, subject, [run for run in trained if run.subject == subject], trained)
                for subject, (name, arm) in product(subjects, self.arms.items())
                if arm.merge is not None
            ]
            found += [*trained, *merged]
        _require_own_folders(found)
        return found

    def _recipe(
        self,
        name: str,
        arm: ArmSettings,
        subject: str,
        taught: dict[str, Any],
        seed: dict[str, Any],
        changes: dict[str, Any],
    ) -> Recipe:
        assert arm.recipe is not None
        try:
            recipe = override(load(arm.recipe), {**self.settings, **taught, **arm.settings, **seed, **changes})
            recipe.require_complete()
        except UserError as error:
            about = f", subject {subject!r}" if subject else ""
            raise UserError(f"arm {name!r}{about}: {error}") from None
        return recipe


def _merged(name: str, merge: MergedArm, subject: str, own: Sequence[ArmRun], trained: Sequence[ArmRun]) -> ArmRun:
    """A merge as it is judged on a subject. own: the trainings on it; trained: those on all subjects, of one seed.

    Raises UserError for a source that is neither an arm nor a path, or that cannot be merged.
    """
    if not own:
        raise UserError(f"arm {name!r}: no arm has a recipe, and a merge is judged beside one that is trained: add one")
    known = {f"{run.arm}-{run.subject}": run for run in trained if run.subject} | {run.arm: run for run in own}
    sources: list[tuple[ArmRun | str, float]] = []
    for source, weight in merge.sources.items():
        run = known.get(source)
        if run is not None:
            _require_mergeable(name, merge, source, run.recipe)
        elif not Path(local_path(source)).exists():
            raise UserError(
                f"arm {name!r}: merge.sources {source!r} is no arm that is trained, and no artifact: "
                f"{nearest(source, known)}"
            )
        sources.append((run or local_path(source), weight))
    first = next((run for run, _ in sources if isinstance(run, ArmRun) and run in own), own[0])
    return ArmRun(name, subject, first.label, first.recipe, merge, tuple(sources))


def _require_mergeable(name: str, merge: MergedArm, source: str, recipe: Recipe) -> None:
    if not isinstance(recipe.tuning, LoraTuning):
        raise UserError(f"arm {name!r}: merge.sources {source!r} trains a full model, and a merge takes LoRAs")
    if recipe.tuning.use_dora and (len(merge.sources) > 1 or merge.into == "lora"):
        raise UserError(
            f"arm {name!r}: merge.sources {source!r} is a DoRA, which does not add up with others: merge it alone, "
            "with into: model"
        )


def _label(subject: str, seed: dict[str, Any]) -> str:
    return "-".join([*filter(None, [subject]), *(str(number) for number in seed.values())])


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
