"""A warm-up that does not fit: a recipe warms up for 25 of 500 steps, and is asked for 20 steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdxl_ray.config.schema import Optim


def fitted(optim: Optim, changes: Mapping[str, Any]) -> tuple[int, str] | None:
    """The warm-up that fits fewer steps, in the recipe's own proportion, and a note of it; None when nothing changes.

    Only a recipe's warm-up is scaled: one that `changes` asks for together with the steps is taken as it is, and
    refused where it does not fit.
    """
    steps = changes.get("optim.steps")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        return None
    if "optim.warmup_steps" in changes or optim.warmup_steps == 0 or optim.warmup_steps < steps:
        return None
    scaled = optim.warmup_steps * steps // optim.steps
    return scaled, (
        f"optim.warmup_steps={optim.warmup_steps} does not fit optim.steps={steps}: scaled to {scaled}, the recipe's "
        f"share of its {optim.steps} steps"
    )
