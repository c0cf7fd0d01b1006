"""Recipe: everything that decides what a run computes, in the sections of `sections.py`.

A recipe is a YAML file (`sdxl_ray/recipes/*.yaml` or your own); `load("lora")` reads one, `override` changes
dotted paths. The command line, search trials and tests all go through these two functions. The sections that
cannot change the result (`parallel` but for its precision, `checkpoint`, `resources`) are left out of
`Recipe.identity`, so a run can be continued on another number of workers.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from sdxl_ray.config import plain_data, validation, warmup
from sdxl_ray.config.other_trainers import answer
from sdxl_ray.config.schema import (
    ArtifactSection,
    Base,
    BaseSetting,
    CheckpointSection,
    Data,
    InTrainingEvaluationSection,
    LoraTuning,
    Objective,
    Optim,
    Parallel,
    Resources,
    Section,
    Tuning,
    short_base,
)
from sdxl_ray.config.schema_errors import elsewhere, paths, validated
from sdxl_ray.errors import UserError

#: Sections that change where and how safely a run computes, but not what it computes; `parallel.precision` does.
NOT_IDENTITY = frozenset({"parallel", "checkpoint", "resources"})


#: Settings that say where something is. What is there decides a result, and is compared by its content.
PATHS = (
    *("base.id", "base.vae", "base.config", "data.images", "data.validation", "data.prior.images"),
    *("tuning.init", "evaluation.identity", "evaluation.clip"),
)


#: Key of the context of validation: the recipe is one of the past.
_MADE = "made"


class Recipe(Section):
    """One run, completely. Frozen; change it with `override`."""

    #: What `override` changed beyond what it was asked for.
    _notes: tuple[str, ...] = PrivateAttr(())

    base: BaseSetting = Base()
    data: Data = Data()
    tuning: Tuning = LoraTuning()
    objective: Objective = Objective()
    optim: Optim = Optim()
    parallel: Parallel = Parallel()
    checkpoint: CheckpointSection = CheckpointSection()
    evaluation: InTrainingEvaluationSection = InTrainingEvaluationSection()
    artifact: ArtifactSection = ArtifactSection()
    resources: Resources = Resources()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @field_validator("objective")
    @classmethod
    def _zero_snr_needs_v(cls, objective: Objective) -> Objective:
        if objective.zero_terminal_snr and objective.prediction in ("epsilon", "sample"):
            raise ValueError(f"zero_terminal_snr needs prediction v_prediction, got {objective.prediction}")
        return objective

    @model_validator(mode="after")
    def _local_has_no_cluster(self) -> Recipe:
        if self.parallel.engine == "local":
            for name in ("wandb", "mlflow"):
                if getattr(self.resources, name) is not None:
                    raise ValueError(f"resources.{name} comes with Ray: use parallel.engine=zero, or set it to null")
            if self.data.stream == "always":
                raise ValueError("data.stream=always goes through Ray Data: use parallel.engine=zero, or stream auto")
        return self

    @model_validator(mode="after")
    def _one_file_is_a_model(self) -> Recipe:
        if self.artifact.single_file and self.tuning.kind == "lora":
            raise ValueError(
                "artifact.single_file is of full tuning, and a LoRA is one file already: leave it out, or write the "
                "base with the LoRA in it by `sdxl-ray export ARTIFACT --to merged --out FILE.safetensors`"
            )
        return self

    @model_validator(mode="after")
    def _has_effect(self, info: ValidationInfo) -> Recipe:
        if not (info.context or {}).get(_MADE):
            validation.refuse(self)
        return self

    def require_complete(self) -> None:
        """Raise UserError when something that a run needs, and that no shipped recipe can know, is not set."""
        if self.data.images is None:
            raise UserError("data.images is not set: give a folder of images, for example data.images=photos/dog")
        if self.data.prior is not None and self.data.prior.prompt is None and not self.data.class_name:
            raise UserError("data.prior needs data.class_name (for example data.class_name=dog) or data.prior.prompt")

    @property
    def local_paths(self) -> dict[str, str]:
        """Setting -> absolute path, of those in PATHS that are neither unset nor a name."""
        plain = self.model_dump(mode="json")
        found = {path: plain_data.value_at(plain, path) for path in PATHS}
        return {path: value for path, value in found.items() if isinstance(value, str) and Path(value).is_absolute()}

    @property
    def identity(self) -> str:
        """SHA-256 of what decides the result; equal for runs that may continue each other."""
        plain = deciding(self.model_dump(mode="json"))
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def deciding(plain: Mapping[str, Any]) -> dict[str, Any]:
    """What of a plain recipe decides the result: whole sections, and the precision of `parallel`.

    Of absolute paths the last part alone, two of `tuning.init` and of a run's `artifact`: the same folder elsewhere
    (another mount, the package of a Ray job) gives the same result.
    """
    kept = {section: value for section, value in plain.items() if section not in NOT_IDENTITY}
    kept = copy.deepcopy(kept) | {"parallel": {"precision": plain.get("parallel", {}).get("precision", "auto")}}
    for path in PATHS:
        value = plain_data.value_at(kept, path)
        if isinstance(value, str) and Path(value).is_absolute():
            # Every artifact folder is called "artifact": its run distinguishes them.
            of_run = path == "tuning.init" or Path(value).name == "artifact"
            parts = Path(value).parts[-2:] if of_run else Path(value).parts[-1:]
            plain_data.assign(kept, path, "/".join(parts))
    return kept


def names() -> list[str]:
    """Names of the recipes shipped with the package."""
    return plain_data.shipped(_folder())


def load(name_or_path: str) -> Recipe:
    """Read a shipped recipe by name (`lora`) or a YAML file by path.

    Raises UserError: no such recipe (nearest name), broken YAML (line), an unknown or invalid key (nearest spelling).
    """
    return parse(plain_data.read(name_or_path, _folder(), "recipe"), name_or_path)


def parse_recorded(plain: Mapping[str, Any], where: str) -> Recipe:
    """The recipe that something was made by: what would be refused today is read as it is."""
    return validated(Recipe, plain, where, answer, context={_MADE: True})


def parse(plain: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Validate a plain dict (from YAML, a Ray worker's config, a checkpoint) into a Recipe."""
    return validated(Recipe, plain, where, answer)


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A new recipe with dotted paths replaced: `override(r, {"optim.lr": 1e-4, "base": "tiny"})`.

    A warm-up of the recipe that does not fit fewer steps is scaled (`warmup.fitted`).

    Raises UserError for an unknown path (nearest spelling) or a value that does not validate.
    """
    plain = recipe.model_dump(mode="json")
    scaled = warmup.fitted(recipe.optim, changes)
    if scaled is not None:
        changes = {**changes, "optim.warmup_steps": scaled[0]}
    for path, value in changes.items():
        plain_data.assign(plain, path, value, meaning_of)
        plain["base"] = short_base(plain["base"])  # so that base.vae can follow a short base=tiny
    changed = parse(plain, "recipe")
    changed._notes = (*recipe._notes, *(scaled[1:] if scaled is not None else ()))
    return changed


def settings() -> list[str]:
    """Every dotted path of a recipe."""
    return list(paths(Recipe))


def meaning_of(path: str) -> str | None:
    """What a path that leads nowhere may mean: `train.learning_rate`, `train.steps`."""
    return answer(path) or elsewhere(Recipe, path.rpartition(".")[2])


def parse_assignments(words: list[str]) -> dict[str, Any]:
    """`["optim.lr=1e-4", "data.flip=true"]` -> `{"optim.lr": 1e-4, "data.flip": True}`; values are YAML."""
    return dict(plain_data.assignment(word) for word in words)


def _folder() -> Traversable:
    return resources.files("sdxl_ray") / "recipes"


def read_base(text: str) -> Base:
    """`"tiny"`, `"folder"`, `"model.safetensors"` or `"org/name@<40-hex commit>"` as a Base."""
    name, at, revision = text.rpartition("@")
    plain: dict[str, Any] = {"id": name, "revision": revision} if at and name.count("/") == 1 else {"id": text}
    return parse({"base": plain}, "--base").base
