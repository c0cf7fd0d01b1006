"""Writes artifacts in the formats that other tools read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from sdxl_ray.config.recipe import parse_recorded
from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import Adapter
from sdxl_ray.formats.diffusers_lora import diffusers_tensors
from sdxl_ray.formats.kohya import kohya_tensors
from sdxl_ray.formats.layer_names import LayerNames
from sdxl_ray.formats.lora_files import read_lora, write_kohya
from sdxl_ray.formats.metadata import lora_metadata
from sdxl_ray.formats.tensor_file import write_in_memory
from sdxl_ray.io.artifact import KOHYA_WEIGHTS, LORA_WEIGHTS, Artifact
from sdxl_ray.models.base_model_files import component_configs, locate

LoraFormat = Literal["diffusers", "kohya"]


def adapter_of(artifact: Artifact, names: LayerNames) -> Adapter:
    """The adapter of a LoRA artifact, from the file that holds all of it. Raises UserError as `read_lora` does."""
    file = artifact.folder / (LORA_WEIGHTS if LORA_WEIGHTS in artifact.manifest.files else KOHYA_WEIGHTS)
    adapter, _ = read_lora(file, names, f"artifact {str(artifact.folder)!r}")
    return adapter


def export_lora(
    artifact: Artifact, names: LayerNames, target: Path, form: LoraFormat, dtype: torch.dtype | None = None
) -> list[str]:
    """Write the LoRA as one file, whole or not at all. dtype None: as it is stored. Returns notes about readers.

    Raises UserError for a LoRA that the format cannot hold.
    """
    adapter = adapter_of(artifact, names)
    target.parent.mkdir(parents=True, exist_ok=True)
    if form == "diffusers":
        write_in_memory(target, *diffusers_tensors(adapter, dtype))
    else:
        recipe = parse_recorded(artifact.manifest.recipe, f"{artifact.folder}: recipe")
        write_kohya(
            target, kohya_tensors(adapter, names, dtype), lora_metadata(adapter, recipe, recipe.data.resolution)
        )
    if form == "kohya" and any(pair.magnitude is not None for pair in adapter.low_rank.values()):
        return [
            "note: this LoRA is a DoRA. ComfyUI scales DoRA by the norm of the base's weight instead of the changed "
            "one, so its images differ: for ComfyUI, export it merged into the model"
        ]
    return []


def export_artifact(
    artifact: Artifact, base: Base, form: str, out: Path | None, *, name: str, dtype: torch.dtype | None
) -> tuple[Path, list[str]]:
    """Write the artifact as `form`; the path and notes about readers.

    out: None for `exported/NAME` with the format's ending. base: of the artifact. dtype None: as it is stored.
    Raises UserError for a format that the kind of artifact does not have.
    """
    kind = artifact.manifest.kind
    if kind != "lora":
        raise UserError(f"artifact {str(artifact.folder)!r} is a full model, which has no format {form!r}")
    names = LayerNames.of(component_configs(locate(base)))
    target = out or Path("exported") / f"{name}.safetensors"
    return target, export_lora(artifact, names, target, "diffusers" if form == "diffusers" else "kohya", dtype)
