"""Launch a run: check everything, open its folder, and train in this process or as a Ray Train job.

    result = launch(recipe, storage="runs")

The same call goes on with a run that was killed: its folder is found by name and the newest whole checkpoint is used.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdxl_ray.config import Recipe
from sdxl_ray.core.optim import require_available
from sdxl_ray.core.preflight import preflight
from sdxl_ray.core.run import Pictures
from sdxl_ray.core.runfolder import APART, RunFolder, default_name, open_run, scan_pictures
from sdxl_ray.core.runlock import locked
from sdxl_ray.distributed.trackers import require_trackers
from sdxl_ray.distributed.worker import train_worker
from sdxl_ray.errors import RunError
from sdxl_ray.storage import Storage

OnRow = Callable[[dict[str, Any]], None]

#: Seconds between Ray Train's looks at its workers, unless the user says otherwise; its own are 2. `train.report` waits
#: for one while the report before is not fetched yet, and an evaluation with a checkpoint makes three.
POLL = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25"}
#: And until an elastic run asks for fewer workers, where what it knew of the cluster was of before a node went; its own
#: are 60. Ray counts what is there: nothing has to be waited for.
ELASTIC = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder, its artifact, and its summary (plain numbers; see `run_training`).

    kept_at: the folder, or the URL that it is a copy of.
    """

    folder: Path
    artifact: Path
    summary: dict[str, Any]
    kept_at: str


def launch(
    recipe: Recipe,
    *,
    storage: str | Path | Storage = "runs",
    name: str | None = None,
    address: str | None = None,
    on_row: OnRow = lambda row: None,
) -> RunResult:
    """Train, or go on with the run of this name; `on_row` gets progress rows (see `display/progress.py`).

    storage: a folder that every node sees, or a URL (`sdxl_ray.storage`), which is copied to a scratch folder here; or
    a Storage that is known to be usable.
    Raises UserError before anything is started when the input is wrong, RunError when the run failed for good.
    """
    place = Storage.usable(storage)
    name = name or default_name(recipe)
    if recipe.parallel.engine == "local":
        from sdxl_ray.core.local import default_device, run_local

        preflight(recipe, default_device().type)
        pictures = scan_pictures(recipe)
        with locked(place.root / name):
            run = _open(recipe, place, name, pictures)
            summary = _ended(run, on_row) or run_local(recipe, run, on_row, place)
        return RunResult(run.folder, run.artifact, summary, place.kept_at(run.folder))
    return _launch_on_ray(recipe, place, name, address, on_row)


def _open(recipe: Recipe, storage: Storage, name: str, pictures: Pictures) -> RunFolder:
    """The run's folder, as it is in the storage, and in the storage as it is now."""
    storage.get_folder(storage.root / name, APART)
    run = open_run(recipe, storage.root, name, pictures)
    storage.put_folder(run.folder, APART)
    return run


def _launch_on_ray(recipe: Recipe, storage: Storage, name: str, address: str | None, on_row: OnRow) -> RunResult:
    from sdxl_ray.distributed.cluster import connected, gpus_per_worker
    from sdxl_ray.distributed.nodes import require_shared
    from sdxl_ray.distributed.stream import encode_stream, scan_stream, streams

    require_trackers(recipe)
    preflight(recipe, "cuda")  # what a GPU would refuse too, before any cluster is waited for
    streaming = streams(recipe)
    pictures = None if streaming else scan_pictures(recipe)
    on_row({"kind": "phase", "name": "connecting to Ray", "done": 0, "total": 0})
    with connected(address, recipe.parallel.workers[1] * recipe.resources.cpus_per_worker):
        gpus = gpus_per_worker(recipe)
        require_available(recipe.optim, "cuda" if gpus else "cpu")
        require_shared(storage)
        pictures = pictures or scan_stream(recipe, on_row)
        with locked(storage.root / name):
            run = _open(recipe, storage, name, pictures)
            summary = _ended(run, on_row)
            if summary is None:
                if streaming:
                    encode_stream(recipe, run, storage, gpus, on_row)
                summary = _fit(recipe, run, storage, gpus, on_row)
    return RunResult(run.folder, run.artifact, summary, storage.kept_at(run.folder))


def _ended(run: RunFolder, on_row: OnRow) -> dict[str, Any] | None:
    """The summary of a run that has nothing left to do, which is then said."""
    summary = run.summary()
    if summary is not None:
        on_row({"kind": "note", "text": "this run has ended: nothing is left to train"})
    return summary


def _fit(recipe: Recipe, run: RunFolder, storage: Storage, gpus: int, on_row: OnRow) -> dict[str, Any]:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from sdxl_ray.distributed.exported import exported
    from sdxl_ray.distributed.mailbox import buried, delivered, open_mailbox

    least, most = recipe.parallel.workers
    mailbox = open_mailbox()
    config = worker_config(recipe, run, storage, mailbox)
    files, root = storage.filesystem()
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": recipe.resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {}),
        ),
        run_config=RunConfig(
            # A fresh name each time: a run goes on from its own checkpoints, not from Ray's memory of a driver.
            name=uuid.uuid4().hex[:12],
            storage_path=f"{root}/{config['name']}/ray",
            storage_filesystem=files,
            failure_config=FailureConfig(max_failures=recipe.resources.max_failures),
        ),
    )
    on_row({"kind": "phase", "name": f"starting {most} worker{'s' if most > 1 else ''}", "done": 0, "total": 0})
    settings = POLL if least == most else {**POLL, **ELASTIC}
    with delivered(mailbox, on_row), exported(settings, unless_set=True):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            ended_of = buried(mailbox)
            raise ended_of or RunError(f"training failed: {_cause(error)}; the same command goes on") from error
        except OSError as error:  # Ray Train itself writes to the storage too
            raise RunError(f"training failed: {_cause(error)}; the same command goes on") from error
    if (ended_of := buried(mailbox)) is not None:
        raise ended_of
    storage.get_folder(run.folder, APART)
    summary = run.summary()
    if summary is None:
        raise RunError(
            f"the workers ended without an artifact in {str(run.folder)!r}: their logs are in Ray's session folder"
        )
    return summary


def worker_config(recipe: Recipe, run: RunFolder, storage: Storage, mailbox: Any) -> dict[str, Any]:
    """What `train_worker` is told."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "name": run.folder.relative_to(storage.root).as_posix(),
        "folder": str(run.folder),
        "cache": str(run.cache),
        "mailbox": mailbox,
        "storage": storage.url,
    }


def _cause(error: BaseException) -> str:
    """The last line that says something: Ray wraps a worker's traceback in its own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
