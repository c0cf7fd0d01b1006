"""Space: what a search may change and what it is judged by, from `tune_spaces/*.yaml` or a file of your own.

recipe: tiny_lora                                  # where the search starts; `settings` are laid over it
metric: quality                                    # or several, for a Pareto front
budget: {trials: 16}                               # trials, steps or seconds, whichever is reached first
parameters:
  optim.lr: {kind: loguniform, low: 1.0e-4, high: 1.0e-2}
  tuning.rank: {kind: choice, values: [2, 4, 8], when: {tuning.kind: lora}}

A parameter is a dotted path of the recipe, and every bound is tried against the recipe before anything starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from sdxl_ray.config import plain_data
from sdxl_ray.config.recipe import NOT_IDENTITY, Recipe, load, override
from sdxl_ray.config.schema import ImagesPath, Names, Section
from sdxl_ray.config.schema_errors import validated
from sdxl_ray.config.search_parameters import Parameter, tried
from sdxl_ray.errors import UserError, nearest

MetricMode = Literal["max", "min"]

#: What a trial reports at every evaluation, and which way is good. All but the last are scores on the *tune* split.
METRICS: dict[str, MetricMode] = {
    "quality": "max",
    "dino_i": "max",
    "clip_t": "max",
    "pres": "min",
    "div": "max",
    "class_kid": "min",
    "validation_loss": "min",
}
#: What a search cannot choose: the layout changes no result, the evaluation is the judge, a seed is luck.
FIXED = {**dict.fromkeys(NOT_IDENTITY, "does not change what is learnt"), "evaluation": "is the judge, not the model",
         "seed": "is luck that does not carry over", "base": "is another model",
         **dict.fromkeys(("data.holdout", "data.validation"), "is what trials are judged by"),
         **dict.fromkeys(("data.images", "data.subject", "data.class_name"), "is what is learnt, not how")}  # fmt: skip


class SearchBudget(Section):
    """When the search ends: at whichever is reached first. All three count what earlier sessions have spent."""

    trials: PositiveInt | None = Field(None, description="trials in all, the default's included")
    steps: PositiveInt | None = Field(None, description="training steps of all trials together")
    seconds: PositiveFloat | None = Field(None, description="seconds of searching")

    @model_validator(mode="after")
    def _bounded(self) -> SearchBudget:
        if self.trials is None and self.steps is None and self.seconds is None:
            raise ValueError("a search needs an end: set trials, steps or seconds")
        return self


class Scheduler(Section):
    """asha: a trial that is behind at a rung is stopped (arXiv 1810.05934). Rungs: grace x reduction^k steps."""

    kind: Literal["asha", "none"] = "asha"
    grace_period: PositiveInt | None = Field(None, description="no trial is stopped before; default: evaluation.every")
    reduction_factor: Annotated[float, Field(gt=1, le=10)] = Field(3.0, description="one in so many survives a rung")

    @model_validator(mode="after")
    def _used(self) -> Scheduler:
        if self.kind == "none" and (self.grace_period, self.reduction_factor) != (None, 3.0):
            raise ValueError("kind none has no settings: remove them, or use kind asha")
        return self


class Searcher(Section):
    """Who proposes: tpe (NeurIPS 2011, Bergstra et al.), nsga2 for several metrics (Deb et al. 2002), or random."""

    kind: Literal["tpe", "nsga2", "random"] = "tpe"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    n_startup_trials: PositiveInt = Field(5, description="tpe: random trials before it models; nsga2: population")

    @model_validator(mode="after")
    def _used(self) -> Searcher:
        if self.kind == "random" and self.n_startup_trials != 5:
            raise ValueError(
                f"n_startup_trials {self.n_startup_trials} has no effect: kind random has no model; "
                "leave it out, or use tpe"
            )
        return self


class Final(Section):
    """How the winner and the default are judged at the end: prompts, seeds and photos that no trial saw."""

    prompts: str | None = Field(None, description="list to judge by: shipped name, .yaml or .txt; default: by base")
    photos: ImagesPath | None = Field(None, description="held-out photos; default: those that tuning does not look at")
    seeds: PositiveInt = Field(4, description="images per prompt and model")
    class_images: Annotated[int, Field(ge=2)] = Field(16, description="images of the plain class per model")


class Space(Section):
    """One search, completely."""

    description: str = ""
    recipe: str = Field(description="shipped recipe or .yaml file; the first trial is this one as it is")
    settings: dict[str, Any] = Field({}, description="dotted settings of every trial")
    metric: Names = Field(("quality",), min_length=1)
    mode: tuple[MetricMode, ...] = Field((), description="default: the metric's own")
    budget: SearchBudget
    max_concurrent_trials: PositiveInt | None = Field(
        None, description="trials beside each other, at most; default: what the cluster has room for"
    )
    scheduler: Scheduler = Scheduler()
    searcher: Searcher = Searcher()
    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]
    final: Final = Final()

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: tuple[str, ...]) -> tuple[str, ...]:
        for name in metric:
            if name not in METRICS:
                raise ValueError(f"no metric {name!r}: {nearest(name, METRICS)}")
        if len(set(metric)) < len(metric):
            raise ValueError("the same metric twice: keep one")
        return metric

    @model_validator(mode="after")
    def _agree(self) -> Space:
        if self.mode and len(self.mode) != len(self.metric):
            raise ValueError(f"{len(self.metric)} metrics and {len(self.mode)} modes: give one for each, or none")
        if len(self.metric) > 1 and self.scheduler.kind == "asha":
            raise ValueError("asha needs one metric to rank by: set scheduler {kind: none}, or keep one metric")
        if len(self.metric) == 1 and self.searcher.kind == "nsga2":
            raise ValueError("nsga2 is for several metrics: use searcher {kind: tpe}, or add a metric")
        return self

    @property
    def modes(self) -> dict[str, MetricMode]:
        """Metric -> the way that is good."""
        return dict(zip(self.metric, self.mode or [METRICS[name] for name in self.metric], strict=True))

    @property
    def scored(self) -> bool:
        """Whether trials must draw and score images; the validation loss alone needs none."""
        return any(name != "validation_loss" for name in self.metric)

    def start(self, changes: Mapping[str, Any]) -> Recipe:
        """The recipe of the first trial: the space's own with `changes` on top. Raises UserError."""
        return override(load(self.recipe), {**self.settings, **changes})

    def last_step(self, recipe: Recipe) -> int:
        """Steps of the longest possible trial."""
        parameter = self.parameters.get("optim.steps")
        return (
            max([recipe.optim.steps, *(int(value) for value in tried(parameter))]) if parameter else recipe.optim.steps
        )

    def sample(self, recipe: Recipe, choose: Callable[[str, Any], Any]) -> dict[str, Any]:
        """Path -> value of every parameter whose `when` holds; `choose(path, parameter)` is asked in order."""
        plain, chosen = recipe.model_dump(mode="json"), dict[str, Any]()
        for path, parameter in self.parameters.items():
            if _holds(parameter.when, plain):
                chosen[path] = choose(path, parameter)
                plain_data.assign(plain, path, chosen[path])
        return chosen

    def defaults(self, recipe: Recipe) -> dict[str, Any]:
        """The recipe's own values of the parameters."""
        plain = recipe.model_dump(mode="json")
        return self.sample(recipe, lambda path, _: plain_data.value_at(plain, path))

    def check(self, recipe: Recipe) -> None:
        """Raise UserError for a path, bound or condition that the recipe does not take, or a budget below one trial.

        Also for a scheduler that could stop no trial, and a metric that the recipe's photos do not give.
        """
        plain = recipe.model_dump(mode="json")
        for place, (path, parameter) in enumerate(self.parameters.items()):
            for fixed, why in FIXED.items():
                if f"{path}.".startswith(f"{fixed}.") or fixed.startswith(f"{path}."):
                    raise UserError(f"parameters: {path!r} cannot be searched: {fixed} {why}")
            self._check_condition(path, parameter, list(self.parameters)[:place], plain)
            here = {key: _first(value) for key, value in parameter.when.items()}
            for value in tried(parameter):
                try:
                    override(recipe, {**here, path: value})
                except UserError as error:
                    raise UserError(f"parameters.{path}: {str(error).removeprefix('recipe: ')}") from None
        self._check_pairs(recipe)
        steps = self.budget.steps
        if steps is not None and steps < self.last_step(recipe):
            raise UserError(
                f"budget.steps={steps} is less than one trial of {self.last_step(recipe)} steps: "
                "raise it, or lower optim.steps"
            )
        every = recipe.evaluation.every
        if self.scheduler.kind == "asha" and not 0 < every < self.last_step(recipe):
            raise UserError(
                f"asha stops trials at evaluations during training, and evaluation.every={every} of optim.steps="
                f"{self.last_step(recipe)} has none: lower evaluation.every, or set scheduler {{kind: none}}"
            )
        grace = self.scheduler.grace_period
        if grace is not None and grace >= self.last_step(recipe):
            raise UserError(
                f"scheduler.grace_period={grace} is not below the last step ({self.last_step(recipe)}), so no trial "
                "would be stopped: lower it, or set scheduler {kind: none}"
            )
        if "validation_loss" in self.metric and recipe.data.validation is None and not recipe.data.holdout:
            raise UserError(
                "metric validation_loss is that of held-out photos, and there are none: set data.holdout=1 or more, "
                "or data.validation to a folder of them"
            )

    def _check_pairs(self, recipe: Recipe) -> None:
        """Raise UserError for two values that a trial could have together and no recipe takes."""
        plain = recipe.model_dump(mode="json")
        for (one, first), (other, second) in combinations(self.parameters.items(), 2):
            for values in product(tried(first), tried(second)):
                wanted = {one: values[0], other: values[1]}
                chosen = self.sample(recipe, partial(_wanted, plain, wanted))
                try:
                    override(recipe, chosen)
                except UserError as error:
                    both = " and ".join(f"{path}={wanted[path]!r}" for path in wanted)
                    raise UserError(
                        f"parameters: a trial can have {both}: {str(error).removeprefix('recipe: ')}; or give one of "
                        "them a `when`"
                    ) from None

    def _check_condition(self, path: str, parameter: Any, before: list[str], plain: dict[str, Any]) -> None:
        for key, wanted in parameter.when.items():
            if key in self.parameters and key not in before:
                raise UserError(f"parameters.{path}: when {key!r} is a parameter that comes later: move it up")
            if key not in before and plain_data.value_at(plain, key, missing := object()) is missing:
                raise UserError(f"parameters.{path}: when has no setting {key!r}: {nearest(key, _paths(plain))}")
            if key not in before and not _holds({key: wanted}, plain):
                raise UserError(
                    f"parameters.{path}: when {key}={wanted!r} never holds, it is {plain_data.value_at(plain, key)!r}: "
                    "make it a parameter that comes before, or remove this one"
                )


def _wanted(plain: Mapping[str, Any], wanted: Mapping[str, Any], path: str, _: Any) -> Any:
    return wanted[path] if path in wanted else plain_data.value_at(plain, path)


def names() -> list[str]:
    """Names of the spaces in `tune_spaces/`."""
    return plain_data.shipped(_folder()) if _folder().is_dir() else []


def load_space(name_or_path: str, changes: Mapping[str, Any] | None = None) -> Space:
    """Read a space by name or file; `changes` are dotted settings of the space itself. Raises UserError, one line."""
    plain = plain_data.read(name_or_path, _folder(), "space")
    for path, value in (changes or {}).items():
        plain.setdefault(path.partition(".")[0], {})
        plain_data.assign(plain, path, value)
    return validated(Space, plain, name_or_path)


def open_space(name: str, changes: Mapping[str, Any]) -> tuple[Space, Recipe]:
    """A space and the recipe of its first trial. changes: settings of the space and of the recipe, dotted.

    Raises UserError for what cannot be searched.
    """
    own, others = divide(changes)
    space = load_space(name, own)
    recipe = space.start(others)
    recipe.require_complete()
    space.check(recipe)
    return space, recipe


def divide(changes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The command line's settings as those of the space (`budget.trials=8`) and those of the recipe (`optim.lr=1`)."""
    mine = {path: value for path, value in changes.items() if path.partition(".")[0] in Space.model_fields}
    return mine, {path: value for path, value in changes.items() if path not in mine}


def _folder() -> Path:
    return Path(__file__).parents[2] / "tune_spaces"


def _holds(when: Mapping[str, Any], plain: Mapping[str, Any]) -> bool:
    return all(
        plain_data.value_at(plain, path) in (wanted if isinstance(wanted, list) else [wanted])
        for path, wanted in when.items()
    )


def _first(wanted: Any) -> Any:
    return wanted[0] if isinstance(wanted, list) else wanted


def _paths(plain: Any, above: str = "") -> list[str]:
    if not isinstance(plain, dict):
        return [above]
    return [path for key, value in plain.items() for path in _paths(value, f"{above}.{key}" if above else key)]
