"""A LoRA artifact of any shape with random weights: for speed, nothing to look at."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file

from sdxl_ray.config.schema import Base
from sdxl_ray.io.artifact import Artifact, write_manifest
from sdxl_ray.models.base_model import locate
from sdxl_ray.models.pipeline import LORA_WEIGHTS

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def random_lora(folder: Path, pipe: StableDiffusionXLPipeline, rank: int, seed: int) -> Artifact:
    """Adapters on every attention of `pipe`'s UNet, with finite images; "made on" the embedded base."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, layer in pipe.unet.named_modules():
        if isinstance(layer, torch.nn.Linear) and name.endswith(TARGETS):
            out, inner = layer.weight.shape
            weights[f"unet.{name}.lora_A.weight"] = torch.randn(rank, inner, generator=generator) * inner**-0.5
            weights[f"unet.{name}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * 0.1
    folder.mkdir(parents=True)
    save_file(weights, folder / LORA_WEIGHTS, {"format": "pt"})
    return write_manifest(
        folder,
        kind="lora",
        recipe={},
        recipe_identity="",
        base_id="tiny",
        base_revision=locate(Base()).revision,
        step=0,
    )
