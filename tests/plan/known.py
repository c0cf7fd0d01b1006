"""SDXL's own numbers, and recipes whose plans are held against them."""

from __future__ import annotations

from typing import Any

from sdxl_ray.config import recipe as recipe_files
from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.plan import Device

UNET = 2_567_463_684

WHOLE = UNET + 83_653_863 + 123_060_480 + 694_659_840

#: The H200 of TARGETS: 790 TFLOP/s and 4.3 TB/s, as measured, so that floors can be held against its limits.
MEASURED = Device("h200-measured", 140 * 1024**3, 790, 4300, 450)


def recipe(name: str = "lora", **changes: Any) -> Recipe:
    return override(recipe_files.load(name), {path.replace("__", "."): value for path, value in changes.items()})


def plain(name: str, batch: int = 1, **changes: Any) -> Recipe:
    """A recipe without prior, checkpointing or accumulation."""
    settings = {"data.prior": None, "parallel.workers": 1, "parallel.gradient_checkpointing": False}
    settings |= {"optim.batch_size": batch, "parallel.micro_batch": None}
    return override(override(recipe_files.load(name), settings), {k.replace("__", "."): v for k, v in changes.items()})


def adapters(rank: int) -> int:
    """q, k, v and out adapters of SDXL's UNet by hand.

    Transformer blocks: 640 channels: 2 x 2 down, 3 x 2 up = 10; 1280 channels: 2 x 10 down, 10 middle, 3 x 10 up = 60.
    A block of width d: self-attention has 4 layers d -> d, cross-attention 2 of d -> d and 2 of 2048 -> d. An adapter
    of in -> out has rank x (in + out) scalars.
    """
    return sum(n * rank * (4 * 2 * d + 2 * 2 * d + 2 * (2048 + d)) for n, d in ((10, 640), (60, 1280)))
