"""How a recipe's computation is laid over its workers, where `parallel.zero_stage` leaves the choice."""

from __future__ import annotations

from sdxl_ray.config.recipe import Recipe


def zero_stage(recipe: Recipe, workers: int, *, half: bool) -> int | None:
    """The ZeRO stage that so many workers use, or None for no ZeRO: one process, or plain data parallelism.

    half: whether the run computes in 16 bits. auto: ZeRO where it saves something. In fp32, one worker has nobody to
    share with, and a LoRA has a few megabytes of gradients and optimizer state: one all-reduce of them is faster than
    sharding, whose bookkeeping is per tensor. In 16 bits DeepSpeed holds the model in 16 bits, where the engine of one
    process uses autocast: weights of 4 bytes in full tuning, and normalisations whose activations are fp32.
    """
    parallel = recipe.parallel
    if parallel.engine == "local":
        return None
    if parallel.zero_stage != "auto":
        return parallel.zero_stage
    if parallel.offload_parameters:
        return 3
    if parallel.offload_optimizer:
        return 2
    return 2 if half or (workers > 1 and recipe.tuning.kind == "full") else None
