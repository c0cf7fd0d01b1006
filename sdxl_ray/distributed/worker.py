"""What each Ray Train worker runs: it builds its place in the group and calls the same `run_training` as a laptop.

Only plain dicts come in. Heavy imports wait until the environment is set, since DeepSpeed chooses its device on import.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdxl_ray.config import parse
from sdxl_ray.errors import RunError, UserError
from sdxl_ray.storage import Storage
from sdxl_ray.storage.deadline import waits_reported

if TYPE_CHECKING:
    from sdxl_ray.core.group import Group
    from sdxl_ray.core.runfolder import RunFolder
    from sdxl_ray.distributed.group import TorchGroup

#: Rows after which the whole group reports to Ray Train (a barrier), and what of them is a metric. Scores are too.
_METRICS = {"validation": ("step", "loss"), "checkpoint": ("step",)}

#: Parts of rows that are for the records alone.
_BULKY = ("examples", "rows")


def train_worker(config: dict[str, Any]) -> None:
    """Train on this rank. `config`: recipe (plain), name, folder, cache, mailbox (actor handle), storage (URL or None),
    driver (its working directory).

    name: of the folder below the storage's root, which need not be where the driver has it.
    """
    _set_environment()
    import torch.distributed as dist

    from sdxl_ray.distributed.group import TorchGroup
    from sdxl_ray.distributed.mailbox import buried, bury

    group = TorchGroup()
    if group.gather(buried(config["mailbox"]) is not None)[0]:
        return  # a restart after an error that would come again: the driver has been told
    try:
        with waits_reported(lambda text: config["mailbox"].put.remote({"kind": "note", "text": text})):
            _train(config, group)
    except (RunError, UserError) as error:
        bury(config["mailbox"], error)
        # When every rank has found the same, all end in peace; one that is alone must fall, or the others wait.
        try:
            dist.monitored_barrier(group._gloo, timeout=timedelta(seconds=10))
        except RuntimeError:
            raise error from None


def _train(config: dict[str, Any], group: TorchGroup) -> None:
    """Collective. Raises RunError and UserError as the run does."""
    import torch
    from ray import train
    from ray.train.torch import get_device

    from sdxl_ray.core.disks import told_when_full
    from sdxl_ray.core.local import precision_on
    from sdxl_ray.core.run import Place, run_training
    from sdxl_ray.core.scribe import Scribe
    from sdxl_ray.distributed.trackers import trackers
    from sdxl_ray.distributed.worker_paths import images_here, recipe_here
    from sdxl_ray.distributed.zero import ZeroEngine

    recipe, device = recipe_here(parse(config["recipe"]), config["driver"]), get_device()
    storage = Storage.of(config["storage"]) if config.get("storage") else None
    run = _run_folder(config, group, storage)
    precision = precision_on(recipe, device)

    def make_engine(denoiser: Any, trainable: Any, micro_batch: int, accumulation: int) -> ZeroEngine:
        return ZeroEngine(
            denoiser,
            trainable,
            recipe.optim,
            recipe.parallel,
            micro_batch=micro_batch,
            accumulation=accumulation,
            device=device,
            precision=precision,
            group=group,
        )

    with told_when_full(run.folder), ExitStack() as stack:
        scribe = None
        if group.rank == 0:
            sinks = [_to(config["mailbox"]), *run.senders(storage), *trackers(recipe, config["name"])]
            scribe = stack.enter_context(closing(Scribe(run.folder, sinks)))

        def report(row: dict[str, Any]) -> None:
            if scribe is not None:
                scribe(row)
            if row["kind"] in _METRICS:
                train.report({f"{row['kind']}_{name}": row[name] for name in _METRICS[row["kind"]]})
            elif row["kind"] == "scores":
                train.report(
                    {"step": row["step"], **row["metrics"]}
                )  # under their own names, as a search asks for them

        place = Place(
            group,
            torch.device(device),
            precision,
            make_engine,
            run.folder,
            run.cache,
            report,
            _preemption_notice(),
            storage,
        )
        summary = run_training(recipe, images_here(run.pictures(), config["driver"]), place)
        stack.close()
        if group.rank == 0:
            run.finish(summary, storage)


def _run_folder(config: dict[str, Any], group: Group, storage: Storage | None) -> RunFolder:
    """Collective. The run's folder as this rank sees it: the shared one, or a copy in this machine's scratch."""
    from sdxl_ray.core.group import leads
    from sdxl_ray.core.runfolder import APART, RunFolder

    if storage is None:
        return RunFolder(Path(config["folder"]), Path(config["cache"]))
    run = RunFolder(storage.root / config["name"], storage.root / "cache")
    if leads(group, storage.root):
        storage.get_folder(run.folder, (*APART, "artifact"))
    group.barrier()
    return run


def _set_environment() -> None:
    import torch

    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"


def _to(mailbox: Any) -> Callable[[dict[str, Any]], None]:
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
        except ray.exceptions.RayError:  # not answered yet, or lost with its node: a run needs nobody to watch it
            pass
        before = mailbox.put.remote({key: value for key, value in row.items() if key not in _BULKY})

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
