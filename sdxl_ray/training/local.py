"""The run of one process: the same run as on a cluster, without Ray or DeepSpeed (`parallel.engine=local`)."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.io.collectives import SingleProcess
from sdxl_ray.io.rows import OnRow
from sdxl_ray.io.storage import Storage
from sdxl_ray.models.adapters import Trainable
from sdxl_ray.models.denoiser import Denoiser
from sdxl_ray.models.device import default_device, precision_on
from sdxl_ray.training.disk_errors import named_when_full
from sdxl_ray.training.engine import LocalEngine
from sdxl_ray.training.loggers import RunLogger
from sdxl_ray.training.run_directory import RunFolder
from sdxl_ray.training.trainer import RunContext, run_training

__all__ = ["default_device", "precision_on", "run_local"]


def run_local(recipe: Recipe, run: RunFolder, on_row: OnRow, storage: Storage | None = None) -> dict[str, Any]:
    """Train in this process; `on_row` gets every row. The run's summary."""
    device = default_device()
    precision = precision_on(recipe, device)

    def make_engine(denoiser: Denoiser, trainable: Trainable, micro_batch: int, accumulation: int) -> LocalEngine:
        return LocalEngine(
            denoiser, trainable, recipe.optim, accumulation=accumulation, device=device, precision=precision
        )

    with named_when_full(run.folder):
        with closing(RunLogger(run.folder, [on_row, *run.senders(storage)])) as run_logger:
            context = RunContext(
                SingleProcess(), device, precision, make_engine, run.folder, run.cache, run_logger, storage=storage
            )
            summary = run_training(recipe, run.images(), context)
        run.finish(summary, storage)
    return summary
