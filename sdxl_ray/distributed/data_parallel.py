"""Plain data parallelism: the engine of one process on every worker, and one all-reduce of all gradients a step."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from sdxl_ray.io.collectives import Collectives
from sdxl_ray.training.engine import LocalEngine


class DataParallelEngine(LocalEngine):
    """Every rank holds all weights and steps them by the same mean gradient, so they stay equal bit for bit.

    Gradients travel as one flat fp32 tensor: a LoRA has hundreds of small ones, and each transfer has its own delay.
    """

    def __init__(self, *arguments: Any, group: Collectives, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.group = group

    def mean_gradients(self) -> None:
        """Replace each gradient by its mean over the workers; one that is missing on a rank counts as zero."""
        if self.group.world == 1:
            return
        parameters = [p for _, p in self.trainable.named]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in parameters])
        dist.all_reduce(flat)
        flat /= self.group.world
        for p, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = mean.view_as(p).to(p.dtype)
