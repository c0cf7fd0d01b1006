"""Which device a plan is for: the one named on the command line, else this machine's. Loads no framework."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sdxl_ray.config import Recipe
    from sdxl_ray.plan import Device

Gpu = Annotated[
    str | None, typer.Option("--gpu", metavar="NAME", help="plan for this device: h200, h100, 4090, cpu, ...")
]
GpuMemory = Annotated[
    str | None, typer.Option("--gpu-memory", metavar="SIZE", help="plan for a GPU of this memory: 24GiB")
]

_PICTURES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def named(gpu: str | None, memory: str | None) -> Device | None:
    """The device that `--gpu` and `--gpu-memory` name, or None. Raises UserError for an unknown one."""
    from sdxl_ray.plan import device

    return None if gpu is None and memory is None else device(gpu, memory)


def gpu_here() -> Device | None:
    """This machine's GPU (the smallest, when there are several), as its driver tells; None when there is none."""
    from sdxl_ray.plan import device

    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=memory.total,name", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        cards = [line.split(", ", 1) for line in told.splitlines() if line.strip()]
        mebibytes, name = min((int(memory), name) for memory, name in cards)
    except (OSError, subprocess.SubprocessError, ValueError):  # a driver that does not answer is no GPU to plan for
        return None
    return replace(device(memory=f"{mebibytes}MiB"), name=name)


def cpu_here(recipe: Recipe) -> Device:
    """This machine's CPU with the memory that each of the recipe's workers may have."""
    import psutil

    from sdxl_ray.plan import CPU

    return replace(CPU, memory_bytes=psutil.virtual_memory().total // recipe.parallel.workers[0])


def count_pictures(recipe: Recipe) -> int | None:
    """Picture files in the recipe's folder, by name alone; None when it has none or is no folder here."""
    folder = Path(recipe.data.images or "")
    if recipe.data.images is None or not folder.is_dir():
        return None
    return sum(file.suffix.lower() in _PICTURES for file in folder.rglob("*")) or None
