"""`tuning.init`: a new run that starts from the weights of an artifact instead of the base's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from sdxl_ray.config.recipe import Recipe, parse_recorded
from sdxl_ray.config.schema import Base, FullTuning, LoraTuning
from sdxl_ray.errors import UserError
from sdxl_ray.io.artifact import LORA_WEIGHTS, Artifact
from sdxl_ray.models.base_model_files import BaseFiles
from sdxl_ray.models.denoiser import Denoiser
from sdxl_ray.models.opening import open_artifact

#: Settings of a LoRA that give its weights their meaning or shape: a run that starts from one has the same.
_SAME = ("rank", "alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")
_PARTS = {"unet": "unet", "text_encoder": "text_encoder_1", "text_encoder_2": "text_encoder_2"}


def initial_artifact(recipe: Recipe) -> Artifact | None:
    """The verified artifact of `tuning.init`, if it is set. Raises UserError."""
    return None if recipe.tuning.init is None else open_artifact(recipe.tuning.init, recipe.base)


def require_initial(recipe: Recipe, files: BaseFiles) -> None:
    """Raise UserError for a `tuning.init` that this recipe cannot start from."""
    artifact = initial_artifact(recipe)
    if artifact is None:
        return
    kind, where = artifact.manifest.kind, f"tuning.init {str(artifact.folder)!r}"
    if kind != recipe.tuning.kind:
        other = "is a LoRA: set tuning.kind=lora" if kind == "lora" else "is a full model: set tuning.kind=full"
        raise UserError(f"{where} {other}, or give an artifact of kind {recipe.tuning.kind}")
    if artifact.in_kohya_alone:
        raise UserError(
            f"{where} holds what diffusers' LoRA format cannot (LyCORIS, DoRA in some layers), and no recipe trains "
            "it: give a plain LoRA"
        )
    if artifact.word_files:
        word = next(iter(artifact.word_files))
        raise UserError(f"{where} brings the word {word!r}, which no recipe can use: give a LoRA without words")
    made_on = artifact.manifest.base
    if made_on.revision != files.revision:
        raise UserError(
            f"{where} was made on base {made_on.id!r} at {made_on.revision[:12]}, not on {files.id!r} at "
            f"{files.revision[:12]}: give that base"
        )
    its = parse_recorded(artifact.manifest.recipe, where).tuning
    if left_out := set(its.text_encoders) - set(recipe.tuning.text_encoders):
        both = sorted({*its.text_encoders, *recipe.tuning.text_encoders})
        raise UserError(f"{where} has trained text encoder {min(left_out)} too: set tuning.text_encoders={both}")
    if isinstance(its, LoraTuning) and isinstance(recipe.tuning, LoraTuning):
        _require_same_adapters(its, recipe.tuning, where)


def load_initial(denoiser: Denoiser, tuning: LoraTuning | FullTuning, base: Base) -> None:
    """Copy the weights of `tuning.init` into the model, after its adapters are there and before anything shards it."""
    if tuning.init is None:
        return
    folder = open_artifact(tuning.init, base).folder
    for part, attribute in _PARTS.items():
        module = getattr(denoiser, attribute)
        if module is not None:
            _load_adapters(module, folder, part) if tuning.kind == "lora" else _load_weights(module, folder / part)


def _require_same_adapters(its: LoraTuning, mine: LoraTuning, where: str) -> None:
    for name in _SAME:
        there, here = getattr(its, name), getattr(mine, name)
        if name == "alpha":  # unset means the rank
            there, here = its.alpha or its.rank, mine.alpha or mine.rank
        if there != here:
            raise UserError(
                f"{where} was trained with tuning.{name}={there}, this recipe has {here}: set it to {there}"
            )
    for name in ("target_modules", "text_target_modules"):
        if left_out := sorted(set(getattr(its, name)) - set(getattr(mine, name))):
            raise UserError(f"{where} has adapters on {left_out[0]!r}: add it to tuning.{name}")


def _load_adapters(module: nn.Module, folder: Path, part: str) -> None:
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    prefix, known = f"{part}.", get_peft_model_state_dict(module)
    with safe_open(folder / LORA_WEIGHTS, framework="pt") as file:
        stored = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
        state = {_own_name(key.removeprefix(prefix), known): file.get_tensor(key) for key in stored}
    _require_known(state, known, folder, part)
    if state:
        set_peft_model_state_dict(module, state)


@torch.no_grad()
def _load_weights(module: nn.Module, folder: Path) -> None:
    """Tensor by tensor, so that memory holds one beside the model; a part that the artifact left alone is there too."""
    known: dict[str, Any] = module.state_dict()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = {_own_name(key, known): key for key in file.keys()}  # noqa: SIM118
            _require_known(names, known, folder.parent, folder.name)
            for name, key in names.items():
                known[name].copy_(file.get_tensor(key))


def _own_name(key: str, known: dict[str, Any]) -> str:
    """transformers before 5.6, and files for it, have the text encoder's layers below `text_model`."""
    return key if key in known else key.removeprefix("text_model.")


def _require_known(state: dict[str, Any], known: dict[str, Any], folder: Path, part: str) -> None:
    if strangers := sorted(state.keys() - known.keys()):
        raise UserError(
            f"tuning.init {str(folder)!r} has {len(strangers)} weights of the {part} that this model has not, as "
            f"{strangers[0]}: give an artifact of this base"
        )
