"""A full model without training: the embedded base with weights moved, in the folder of a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.io.artifact import Artifact, write_manifest
from sdxl_ray.tiny import shipped

#: (part, name without `text_model.`, weight) -> the tuned weight; None leaves it as it is.
Move = Callable[[str, str, Tensor], Tensor | None]


def moved_base(folder: Path, move: Move, dtype: torch.dtype | None = torch.float32) -> Path:
    """A diffusers folder of the embedded base whose UNet and text encoders `move` has changed."""
    shutil.copytree(shipped.folder(), folder)
    for part in ("unet", "text_encoder", "text_encoder_2"):
        file = next((folder / part).glob("*.safetensors"))
        weights = {}
        for name, weight in load_file(file).items():
            wide = weight.to(dtype) if dtype is not None else weight
            moved = move(part, name.removeprefix("text_model."), wide)
            weights[name] = (wide if moved is None else moved).contiguous()
        save_file(weights, file, {"format": "pt"})
    return folder


def moved_run(run: Path, recipe: Recipe, move: Move, dtype: torch.dtype | None = torch.float32) -> Artifact:
    """`run/artifact`: such a folder as the full artifact of a run with this recipe."""
    return write_manifest(
        moved_base(run / "artifact", move, dtype),
        kind="full",
        recipe=recipe.model_dump(mode="json"),
        recipe_identity=recipe.identity,
        base_id="tiny",
        base_revision=shipped.revision(),
        step=7,
    )


def layer_noise(strength: float) -> Move:
    """Random changes of every Linear, convolution and embedding; norms and biases stay."""

    def move(part: str, name: str, weight: Tensor) -> Tensor | None:
        if name.endswith(".bias") or weight.dim() < 2:
            return None
        draw = torch.Generator().manual_seed(len(part) * 1000 + len(name) + weight.numel())
        return weight + strength * weight.std() * torch.randn(weight.shape, generator=draw).to(weight.dtype)

    return move
