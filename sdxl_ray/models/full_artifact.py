"""A full artifact that no run trained: a base whose weights were changed, as a standalone diffusers folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.config.schema import FullTuning
from sdxl_ray.formats.adapter import Layer, Part
from sdxl_ray.io.artifact import Artifact, write_manifest
from sdxl_ray.io.atomic import whole_folder
from sdxl_ray.io.model_card import write_card
from sdxl_ray.io.safetensors_files import read_header, weight_files
from sdxl_ray.models.adapters import TUNINGS, denoiser_of
from sdxl_ray.models.base_model import BaseFiles, Components

_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NUMBERS: tuple[tuple[Part, Literal[1, 2]], ...] = (("text_encoder", 1), ("text_encoder_2", 2))


def write_full_artifact(
    folder: Path,
    components: Components,
    recipe: Recipe,
    parts: tuple[Part, ...],
    *,
    origin: Mapping[str, Any],
    dtype: torch.dtype,
) -> Artifact:
    """Write `folder` as a whole or not at all: UNet and text encoders in `dtype`, the VAE as it was loaded.

    recipe: of the base and, if known, of the subject; its tuning is replaced. parts: those that were changed.
    origin: as in `Manifest`, "command" first. Raises OSError.
    """
    tuning = FullTuning(text_encoders=tuple(number for part, number in _NUMBERS if part in parts))
    recorded = recipe.model_copy(update={"tuning": tuning})
    every = FullTuning(text_encoders=(1, 2))  # all have the artifact's dtype, those that were left alone too
    with whole_folder(folder) as draft:
        TUNINGS[FullTuning].export(denoiser_of(components, every), components, draft, recorded, dtype)
        artifact = write_manifest(
            draft,
            kind="full",
            recipe=recorded.model_dump(mode="json"),
            recipe_identity=recorded.identity,
            base_id=components.files.id,
            base_revision=components.files.revision,
            step=0,
            origin=origin,
        )
        write_card(draft, artifact.manifest, recorded, {})
    return Artifact(folder, artifact.manifest)


def stored_dtype(files: BaseFiles) -> torch.dtype:
    """The dtype that most of the UNet's numbers have on disk; fp32 for a dtype that no artifact is written in."""
    paths = [files.path] if files.kind == "file" else weight_files(files.path / "unet")[:1]
    counts: dict[str, int] = {}
    for path in paths:
        for name, entry in read_header(path, f"base {files.id!r}").items():
            if files.kind == "folder" or name.startswith("model.diffusion_model."):
                first, last = entry["data_offsets"]
                counts[entry["dtype"]] = counts.get(entry["dtype"], 0) + last - first
    return _STORED.get(max(counts, key=counts.__getitem__, default="F32"), torch.float32)


def modules_of(components: Components) -> dict[Layer, nn.Module]:
    """The layers with weights by their names on disk, which transformers may shorten in memory."""
    models = {
        "unet": components.unet,
        "text_encoder": components.text_encoders[0],
        "text_encoder_2": components.text_encoders[1],
    }
    return {layer: module for part, model in models.items() for layer, module in _layers(part, model)}


def _layers(part: Any, model: nn.Module) -> Iterator[tuple[Layer, nn.Module]]:
    for name, module in model.named_modules():
        if not isinstance(getattr(module, "weight", None), torch.Tensor):
            continue
        bare = part == "unet" or name.startswith("text_model.") or name == "text_projection"
        yield Layer(part, name if bare else f"text_model.{name}"), module
