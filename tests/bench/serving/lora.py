"""A LoRA with random weights on every attention projection of a UNet, as an artifact: its speed is a trained one's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from arms import TARGETS
from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from sdxl_ray.config.recipe import load
from sdxl_ray.config.schema import Base
from sdxl_ray.io.artifact import Artifact, write_manifest
from sdxl_ray.models.base_model import locate

#: So small that images stay images; zero would let a library skip it.
_STRENGTH = 1e-3


def random_lora(folder: Path, unet: Any, base: Base, rank: int, seed: int) -> Artifact:
    """Write an artifact for `base`; `unet` has its shapes and is left as it was."""
    torch.manual_seed(seed)
    unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=False, target_modules=list(TARGETS)), adapter_name="made"
    )
    weights = {
        name: _STRENGTH * torch.randn(weight.shape)
        for name, weight in get_peft_model_state_dict(unet, adapter_name="made").items()
    }
    config = unet.peft_config["made"].to_dict()
    unet.unload_lora()  # the layers themselves, not wrapped in what would add nothing
    folder.mkdir(parents=True)
    StableDiffusionXLPipeline.save_lora_weights(folder, unet_lora_layers=weights, unet_lora_adapter_metadata=config)
    recipe = load("tiny_lora").model_copy(update={"base": base})
    return write_manifest(
        folder,
        kind="lora",
        recipe=recipe.model_dump(mode="json"),
        recipe_identity=recipe.identity,
        base_id=base.id,
        base_revision=base.revision or locate(base).revision,
        step=1,
    )
