"""Where a process computes, and in what precision."""

from __future__ import annotations

import torch

from sdxl_ray.config.recipe import Recipe

#: Dtype by the name that settings have for it.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision_on(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The dtype of `parallel.precision` on a device."""
    auto = "bf16" if device.type == "cuda" and has_bf16() else "fp32"
    return DTYPES[auto if recipe.parallel.precision == "auto" else recipe.parallel.precision]


def has_bf16() -> bool:
    """Whether the GPU computes in bf16 itself: older cards imitate it, many times slower than fp16."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
