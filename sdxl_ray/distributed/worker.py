"""What each Ray Train worker runs: it builds its place in the group and calls the same `run_training` as a laptop.

Only plain dicts come in. Heavy imports wait until the environment is set, since DeepSpeed chooses its device on import.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdxl_ray.config.recipe import parse
from sdxl_ray.errors import RunError, UserError
from sdxl_ray.io.storage import Storage
from sdxl_ray.io.storage.deadline import waits_reported

if TYPE_CHECKING:
    import torch

    from sdxl_ray.config.recipe import Recipe
    from sdxl_ray.distributed.collectives import TorchGroup
    from sdxl_ray.io.collectives import Collectives
    from sdxl_ray.models.adapters import Trainable
    from sdxl_ray.models.denoiser import Denoiser
    from sdxl_ray.training.engine import TrainingEngine
    from sdxl_ray.training.run_directory import RunFolder
    from sdxl_ray.training.trainer import MakeEngine

#: Parts of rows that are for the records alone.
_BULKY = ("examples", "rows")


def train_worker(config: dict[str, Any]) -> None:
    """Train on this rank. `config`: recipe (plain), name, folder, cache, channel (actor handle), storage (URL or None),
    driver (its working directory).

    name: of the folder below the storage's root, which need not be where the driver has it.
    """
    _set_environment()
    from sdxl_ray.distributed.collectives import TorchGroup
    from sdxl_ray.distributed.progress_channel import fatal_error, send_fatal_error

    group = TorchGroup()
    if group.gather(fatal_error(config["channel"]) is not None)[0]:
        return  # a restart after an error that would come again: the driver already has the error
    try:
        with waits_reported(lambda text: config["channel"].put.remote({"kind": "note", "text": text})):
            _train(config, group)
    except (RunError, UserError) as error:
        send_fatal_error(config["channel"], error)
        # If every rank hit this error, return. If only this one did, re-raise, so that Ray stops the group.
        if not group.all_arrive(within_s=10):
            raise


def _train(config: dict[str, Any], group: TorchGroup) -> None:
    """Collective. Raises RunError and UserError as the run does."""
    import torch
    from ray.train.torch import get_device

    from sdxl_ray.distributed.trackers import trackers
    from sdxl_ray.distributed.train_reports import TrainReports
    from sdxl_ray.distributed.worker_paths import images_here, recipe_here
    from sdxl_ray.training.disk_errors import named_when_full
    from sdxl_ray.training.local import precision_on
    from sdxl_ray.training.loggers import RunLogger
    from sdxl_ray.training.trainer import RunContext, run_training

    recipe, device = recipe_here(parse(config["recipe"]), config["driver"]), get_device()
    storage = Storage.of(config["storage"]) if config.get("storage") else None
    run = _run_folder(config, group, storage)
    precision = precision_on(recipe, device)

    with named_when_full(run.folder), ExitStack() as stack:
        run_logger = None
        if group.rank == 0:
            sinks = [_to(config["channel"]), *run.senders(storage), *trackers(recipe, config["name"])]
            run_logger = stack.enter_context(closing(RunLogger(run.folder, sinks)))

        def log(row: dict[str, Any]) -> None:
            if run_logger is not None:
                run_logger(row)

        root = run.folder.parents[config["name"].count("/")]
        reports = TrainReports(group.rank, storage or Storage(root), config["name"], log)

        def report(row: dict[str, Any]) -> None:
            log(row)
            reports(row)

        context = RunContext(
            group,
            torch.device(device),
            precision,
            _engine_maker(recipe, torch.device(device), precision, group),
            run.folder,
            run.cache,
            report,
            _preemption_notice(),
            storage,
        )
        summary = run_training(recipe, images_here(run.images(), config["driver"]), context)
        stack.close()
        if group.rank == 0:
            run.finish(summary, storage)


def _engine_maker(recipe: Recipe, device: torch.device, precision: torch.dtype, group: Collectives) -> MakeEngine:
    """DeepSpeed where a ZeRO stage is wanted, else the engine of one process with one all-reduce a step."""
    from sdxl_ray.config.layout import zero_stage
    from sdxl_ray.distributed.data_parallel import DataParallelEngine

    stage = zero_stage(recipe, group.world, half=precision.itemsize == 2)

    def make(denoiser: Denoiser, trainable: Trainable, micro_batch: int, accumulation: int) -> TrainingEngine:
        common: dict[str, Any] = {
            "accumulation": accumulation,
            "device": device,
            "precision": precision,
            "group": group,
        }
        if stage is None:
            return DataParallelEngine(denoiser, trainable, recipe.optim, **common)
        from sdxl_ray.distributed.zero import ZeroEngine  # DeepSpeed takes seconds to import

        return ZeroEngine(
            denoiser, trainable, recipe.optim, recipe.parallel, stage=stage, micro_batch=micro_batch, **common
        )

    return make


def _run_folder(config: dict[str, Any], group: Collectives, storage: Storage | None) -> RunFolder:
    """Collective. The run's folder as this rank sees it: the shared one, or a copy in this machine's scratch."""
    from sdxl_ray.io.collectives import leads_machine
    from sdxl_ray.training.run_directory import APART, RunFolder

    if storage is None:
        return RunFolder(Path(config["folder"]), Path(config["cache"]))
    run = RunFolder(storage.root / config["name"], storage.root / "cache")
    if leads_machine(group, storage.root):
        storage.get_folder(run.folder, (*APART, "artifact"))
    group.barrier()
    return run


def _set_environment() -> None:
    import torch

    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"


def _to(channel: Any) -> Callable[[dict[str, Any]], None]:
    """A sink that raises RunError when the one before it was refused: whoever waits for this run has given it up."""
    import ray

    before: Any = None

    def send(row: dict[str, Any]) -> None:
        nonlocal before
        try:
            if before is not None:
                ray.get(before, timeout=0)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError:  # not answered yet, or lost with its node: a run does not need its driver
            pass
        before = channel.put.remote({key: value for key, value in row.items() if key not in _BULKY})

    return send


def _preemption_notice() -> Callable[[], bool]:
    """Collective: True once for each notice that a node of this run will be taken away."""
    from ray.train import get_preemption_info

    seen: list[Any] = []

    def preempted() -> bool:
        info = get_preemption_info()
        if info is None or info in seen:
            return False
        seen.append(info)
        return True

    return preempted
