"""The run of one process: the same run as on a cluster, without Ray or DeepSpeed (`parallel.engine=local`)."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from sdxl_ray.config import Recipe
from sdxl_ray.core.denoiser import Denoiser
from sdxl_ray.core.device import default_device, precision_on
from sdxl_ray.core.disks import told_when_full
from sdxl_ray.core.engine import LocalEngine
from sdxl_ray.core.group import Alone
from sdxl_ray.core.run import Place, run_training
from sdxl_ray.core.runfolder import RunFolder
from sdxl_ray.core.scribe import Scribe, Sink
from sdxl_ray.core.tuning import Trainable
from sdxl_ray.storage import Storage

__all__ = ["default_device", "precision_on", "run_local"]


def run_local(recipe: Recipe, run: RunFolder, on_row: Sink, storage: Storage | None = None) -> dict[str, Any]:
    """Train in this process; `on_row` gets every row. The run's summary."""
    device = default_device()
    precision = precision_on(recipe, device)

    def make_engine(denoiser: Denoiser, trainable: Trainable, micro_batch: int, accumulation: int) -> LocalEngine:
        return LocalEngine(
            denoiser, trainable, recipe.optim, accumulation=accumulation, device=device, precision=precision
        )

    with told_when_full(run.folder):
        with closing(Scribe(run.folder, [on_row, *run.senders(storage)])) as scribe:
            place = Place(Alone(), device, precision, make_engine, run.folder, run.cache, scribe, storage=storage)
            summary = run_training(recipe, run.pictures(), place)
        run.finish(summary, storage)
    return summary
