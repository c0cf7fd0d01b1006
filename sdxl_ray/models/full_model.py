"""A full model beside the base that it was made on: what `sdxl-ray extract` takes apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdxl_ray.config import recipe as recipe_files
from sdxl_ray.config.recipe import Recipe
from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.formats.model_tensors import ModelTensors, folder_tensors, part_tensors, require_same_shapes
from sdxl_ray.io.artifact import MANIFEST, Artifact
from sdxl_ray.io.safetensors_files import PIPELINE_FILES, content_revision, read_json
from sdxl_ray.models import model_kinds
from sdxl_ray.models.base_model_files import BaseFiles, check_folder, component_configs, locate
from sdxl_ray.models.opening import open_artifact
from sdxl_ray.paths import local_folder


@dataclass(frozen=True)
class FullModel:
    """A tuned model as a diffusers folder, and its base.

    hash: of the artifact, or of the folder's files. recipe: the artifact's own; of another folder, the base's shipped
    one with the subject's words.
    """

    folder: Path
    hash: str
    files: BaseFiles
    recipe: Recipe
    artifact: Artifact | None = None

    @classmethod
    def open(
        cls,
        model: str | Path | Artifact,
        base: Base | None = None,
        *,
        subject: str | None = None,
        class_name: str | None = None,
    ) -> FullModel:
        """An opened artifact, its folder, or a diffusers folder or single file with its base.

        subject, class_name: what prompts call the subject, where no recipe says it. Raises UserError: a LoRA, no
        model, no base, or another one.
        """
        artifact = model if isinstance(model, Artifact) else None
        if artifact is None and local_folder(str(model)).suffix == ".safetensors":
            artifact = open_artifact(str(model), base)
        folder = artifact.folder if artifact is not None else _folder(str(model))
        if artifact is None and (folder / MANIFEST).is_file():
            artifact = Artifact.open(folder)
        opened = _of_folder(folder, base) if artifact is None else _of_artifact(artifact, base)
        words = {"subject": subject, "class_name": class_name}
        data = opened.recipe.data.model_copy(update={name: word for name, word in words.items() if word is not None})
        recipe = opened.recipe.model_copy(update={"data": data})
        return cls(opened.folder, opened.hash, opened.files, recipe, opened.artifact)

    @property
    def name(self) -> str:
        """The run's name, or the folder's."""
        folder = self.folder.absolute()
        return folder.parent.name if folder.name == "artifact" else folder.name

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"model {str(self.folder)!r}"

    def tensors(self) -> tuple[ModelTensors, ModelTensors]:
        """Those of the model and of its base, in equal shapes. Raises UserError where they are not."""
        base = self.files.path
        if self.files.kind == "file":  # a diffusers folder of it, in the cache
            base = open_artifact(base, self.recipe.base).folder
        mine, its = folder_tensors(self.folder, self.where), folder_tensors(base, f"base {self.files.id!r}")
        require_same_shapes(mine, its, self.where, self.files.id)
        return mine, its

    def has_other_vae(self) -> bool:
        """Whether its VAE is not the base's, rounding to its own dtype aside."""
        base = self.files.vae or self.files.path / "vae"
        mine, its = part_tensors(self.folder / "vae", self.where), part_tensors(base, f"base {self.files.id!r}")
        if mine.keys() != its.keys():
            return True
        for name, stored in mine.items():
            weight = stored.read()
            if not bool((weight == its[name].read().to(weight.dtype)).all()):
                return True
        return False


def _of_artifact(artifact: Artifact, base: Base | None) -> FullModel:
    folder = artifact.folder
    if artifact.manifest.kind != "full":
        raise UserError(
            f"artifact {str(folder)!r} is a LoRA already: extract takes a full model, the artifact of a full run or a "
            "diffusers folder"
        )
    recipe = recipe_files.parse_recorded(artifact.manifest.recipe, f"{folder}: recipe")
    files = locate(base or recipe.base)
    made_on = artifact.manifest.base
    if files.revision != made_on.revision:
        raise UserError(
            f"artifact {str(folder)!r} was made on base {made_on.id!r} at {made_on.revision[:12]}, not on {files.id!r} "
            f"at {files.revision[:12]}: give that base"
        )
    return FullModel(folder, artifact.hash, files, recipe.model_copy(update={"base": base or recipe.base}), artifact)


def _of_folder(folder: Path, base: Base | None) -> FullModel:
    if not (folder / "model_index.json").is_file():
        what = model_kinds.of_folder(folder)
        raise UserError(
            f"{str(folder)!r} is no full model: give the artifact of a full run or a diffusers folder"
            f"{what and f'; {what}'}"
        )
    check_folder(folder, str(folder))
    if base is None:
        raise UserError(f"{str(folder)!r} does not say what it was made on: give --base")
    files = locate(base)
    hashed = content_revision(folder, PIPELINE_FILES)
    if hashed == files.revision or folder.resolve() == files.path.resolve():
        raise UserError(f"{str(folder)!r} is the base itself: give the model that was tuned from it")
    recipe = recipe_files.load("tiny_lora" if base.id == "tiny" else "lora").model_copy(update={"base": base})
    return FullModel(folder, hashed, files, _with_prediction(recipe, folder, files))


def _with_prediction(recipe: Recipe, folder: Path, files: BaseFiles) -> Recipe:
    """The recipe of a model that predicts something else than its base, as its scheduler says."""
    mine = read_json(folder / "scheduler" / "scheduler_config.json")
    kind = mine.get("prediction_type", "epsilon")
    if kind == component_configs(files)["scheduler"].get("prediction_type", "epsilon"):
        return recipe
    zero_snr = bool(mine.get("rescale_betas_zero_snr"))
    return recipe_files.override(recipe, {"objective.prediction": kind, "objective.zero_terminal_snr": zero_snr})


def _folder(model: str) -> Path:
    path = local_folder(model)
    if path.is_file():
        raise UserError(f"{model!r} is a file: extract takes the artifact of a full run or a diffusers folder")
    if not path.is_dir():
        raise UserError(f"{model!r}: no such folder; give the artifact of a full run or a diffusers folder")
    inside = path / "artifact"
    if (inside / MANIFEST).is_file() and not (path / MANIFEST).is_file():
        raise UserError(f"{model!r} is the folder of a run: did you mean {str(inside)!r}?")
    return path
