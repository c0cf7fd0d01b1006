"""Which small changes of a recipe make it fit a device, cheapest first."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sdxl_ray.config.layout import zero_stage
from sdxl_ray.config.recipe import Recipe, override
from sdxl_ray.config.schema import FullTuning, LoraTuning
from sdxl_ray.errors import UserError
from sdxl_ray.plan.devices import Device

Changes = dict[str, Any]


@dataclass(frozen=True)
class Edit:
    """One change. cost: how much slower, dearer or different the run becomes; only the order matters."""

    changes: Changes
    cost: float
    workers: int | None = None


@dataclass(frozen=True)
class Remedy:
    """Settings that fit, as they are typed after the recipe's name."""

    changes: Changes
    needed_bytes: int

    def __str__(self) -> str:
        return " ".join(f"{path}={_typed(value)}" for path, value in self.changes.items())


def remedies(
    recipe: Recipe,
    workers: int,
    needed: Callable[[Recipe, int], int],
    device: Device,
    precision: str,
    most: int = 3,
) -> list[Remedy]:
    """Up to `most` sets of changes after which `needed(recipe, workers)` is within the device's limit, cheapest first.

    A set that contains a smaller one that already fits is left out. Changing LoRA for full tuning or back is never
    a small change: it is offered alone and only when nothing else fits. On a CPU, nothing that moves state off a GPU
    or needs its kernels is offered. precision: the one that the recipe has on this device.
    """
    found: list[Remedy] = []
    for chosen in _combinations(recipe, workers, device, precision):
        changes = {path: value for edit in chosen for path, value in edit.changes.items()}
        if any(known.changes.items() <= changes.items() for known in found):
            continue
        count = max([workers, *(edit.workers for edit in chosen if edit.workers)])
        try:
            size = needed(override(recipe, changes), count)
        except UserError:
            continue  # settings that exclude each other
        if size <= device.limit_bytes(count):
            found.append(Remedy(changes, size))
        if len(found) == most:
            break
    if not found and isinstance(recipe.tuning, FullTuning):
        small = {"tuning.kind": "lora", "parallel.gradient_checkpointing": True, "parallel.micro_batch": 1}
        size = needed(override(recipe, small), workers)
        return [Remedy(small, size)] if size <= device.limit_bytes(workers) else []
    return found


def _combinations(recipe: Recipe, workers: int, device: Device, precision: str) -> list[tuple[Edit, ...]]:
    choices = [list(axis) for axis in _axes(recipe, workers, device, precision)]
    sets = itertools.product(*[[None, *axis] for axis in choices])
    chosen = [tuple(edit for edit in some if edit is not None) for some in sets]
    # Two settings to type are worse than one that costs a little more.
    return sorted(
        (some for some in chosen if some), key=lambda some: sum(edit.cost for edit in some) + 0.05 * len(some)
    )


def _axes(recipe: Recipe, workers: int, device: Device, precision: str) -> list[list[Edit]]:
    """Edits by what they act on; at most one of each list is taken."""
    parallel, optim, gpu = recipe.parallel, recipe.optim, device.kind == "gpu"
    axes: list[list[Edit]] = []
    if gpu and precision == "fp32":
        axes.append([Edit({"parallel.precision": "bf16" if device.bf16 else "fp16"}, 0.1)])
    if not parallel.gradient_checkpointing:
        axes.append([Edit({"parallel.gradient_checkpointing": True}, 0.3)])
    if parallel.micro_batch != 1:
        sizes = [n for n in (4, 2, 1) if n < (parallel.micro_batch or optim.batch_size + 1)]
        axes.append([Edit({"parallel.micro_batch": n}, 0.05 * (5 - n) / 4) for n in sizes])
    if parallel.engine == "zero":
        stages: list[Edit] = []
        for stage in range((zero_stage(recipe, workers, half=gpu) or 0) + 1, 4):
            stages.append(Edit({"parallel.zero_stage": stage}, 0.1 if stage < 3 else 0.4))
        if not parallel.offload_parameters and gpu:
            stages.append(Edit({"parallel.zero_stage": 3, "parallel.offload_parameters": True}, 2.0))
        axes.append(stages)
        if not parallel.offload_optimizer and gpu:
            axes.append([Edit({"parallel.offload_optimizer": True}, 0.9)])
        more = [n for n in (2, 4, 8) if n > workers]
        axes.append([Edit({"parallel.workers": n}, 0.35 * n / workers, workers=n) for n in more])
    if optim.name in ("adamw", "prodigy") and gpu:
        axes.append([Edit({"optim.name": "adamw8bit"}, 0.5)])
    if optim.ema_decay is not None:
        axes.append([Edit({"optim.ema_decay": None}, 0.6)])
    if isinstance(recipe.tuning, LoraTuning) and recipe.tuning.rank > 16:
        alphas = {"tuning.alpha": 16} if recipe.tuning.alpha == recipe.tuning.rank else {}
        axes.append([Edit({"tuning.rank": 16, **alphas}, 1.2)])
    if recipe.tuning.text_encoders:
        axes.append([Edit({"tuning.text_encoders": []}, 1.2)])
    return [axis for axis in axes if axis]


def _typed(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    return "[]" if value == [] else str(value)
