"""Which device a plan is for: the one named on the command line, else this machine's. Loads no framework."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sdxl_ray.config.recipe import Recipe
    from sdxl_ray.plan import Device

GpuOption = Annotated[
    str | None, typer.Option("--gpu", metavar="NAME", help="plan for this device: h200, h100, 4090, cpu, ...")
]
GpuMemoryOption = Annotated[
    str | None, typer.Option("--gpu-memory", metavar="SIZE", help="plan for a GPU of this memory: 24GiB")
]


def elsewhere(address: str | None) -> bool:
    """Whether Ray will be a cluster that is there already, as `distributed.cluster.connected` decides."""
    return bool(address or os.environ.get("RAY_ADDRESS"))


def named(gpu: str | None, memory: str | None) -> Device | None:
    """The device that `--gpu` and `--gpu-memory` name, or None. Raises UserError for an unknown one."""
    from sdxl_ray.plan import device

    return None if gpu is None and memory is None else device(gpu, memory)


def gpu_here() -> Device | None:
    """This machine's GPU (the smallest, when there are several), as its driver reports it; None when there is none."""
    from sdxl_ray.plan.devices import card
    from sdxl_ray.plan.gpu_driver import gpus_here

    gpus = gpus_here()
    return card(min(gpus, key=lambda gpu: gpu.memory_mib)) if gpus else None


def cpu_here() -> Device:
    """This machine's CPU, with the memory that all workers share."""
    import psutil

    from sdxl_ray.doctor.machine import has_amx_bf16
    from sdxl_ray.plan import CPU
    from sdxl_ray.plan.container_memory import container_memory_bytes

    whole = psutil.virtual_memory().total
    return replace(CPU, memory_bytes=min(whole, container_memory_bytes() or whole), bf16=has_amx_bf16(), shared=True)


def count_images(recipe: Recipe) -> int | None:
    """Images that the recipe trains on, by name alone; None when `data.images` is not here or leaves none."""
    from sdxl_ray.data.image_sources import entries
    from sdxl_ray.errors import UserError

    data = recipe.data
    if data.images is None:
        return None
    try:
        count = len(entries(data.images, "prompt", "any caption", "data.images", recursive=data.recursive))
    except UserError:  # what is wrong with it is said by the run
        return None
    count -= data.holdout if data.validation is None else 0
    return max(0, min(count, data.limit or count)) or None
