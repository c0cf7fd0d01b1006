"""Where a process computes, and in what precision."""

from __future__ import annotations

import torch

from sdxl_ray.config import Recipe

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision_on(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The dtype of `parallel.precision` on a device."""
    auto = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return _PRECISIONS[auto if recipe.parallel.precision == "auto" else recipe.parallel.precision]


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
