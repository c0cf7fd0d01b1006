"""Launch a run: check everything, open its folder, and train in this process or as a Ray Train job.

    result = launch(recipe, storage="runs")

The same call resumes a run that was killed: its folder is found by name and the newest whole checkpoint is loaded.
"""

from __future__ import annotations

import uuid
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdxl_ray.config.notes import report_notes
from sdxl_ray.config.recipe import Recipe
from sdxl_ray.distributed._ray_private import trainer_class
from sdxl_ray.distributed.failures import cause
from sdxl_ray.distributed.trackers import require_trackers
from sdxl_ray.distributed.worker import train_worker
from sdxl_ray.errors import RunError, UserError
from sdxl_ray.interrupts import keeping
from sdxl_ray.io.rows import OnRow
from sdxl_ray.io.storage import Storage
from sdxl_ray.paths import required_name, working_directory
from sdxl_ray.training.extension import extend as extend_run
from sdxl_ray.training.extension import find_extensible
from sdxl_ray.training.input_notes import run_notes
from sdxl_ray.training.optim import require_available
from sdxl_ray.training.preflight import preflight
from sdxl_ray.training.run_directory import APART, RunFolder, default_name, open_run, scan_images
from sdxl_ray.training.run_lock import locked
from sdxl_ray.training.trainer import Splits

#: Ray Train's defaults that are wrong here, unless the user has set them. Seconds between its health checks (2):
#: `train.report` waits for one while the report before is not fetched yet, and an evaluation with a checkpoint makes
#: three. A working directory of its own for each worker, which hides what the job's package holds.
DEFAULTS = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
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
    extend: bool = False,
    on_row: OnRow = lambda row: None,
) -> RunResult:
    """Train, or resume the run of this name; `on_row` gets progress rows (see `display/progress.py`).

    extend: a run that was made with fewer steps is trained up to `optim.steps`; without a name, the one in the storage
    that differs by nothing else.
    storage: a folder that every node sees, or a URL (`sdxl_ray.io.storage`), which is copied to a scratch folder here;
    or a Storage that is known to be usable.
    Raises UserError before anything is started when the input is wrong, RunError when the run failed for good.
    """
    place = Storage.usable(storage)
    if extend and name is None:
        if place.url is not None:  # this machine may have no copy of the run
            raise UserError("--extend: give the run's --name: under a URL it is not looked for")
        name = find_extensible(recipe, place.root)
    name = name or default_name(recipe)
    for part in name.split("/"):  # a trial is below its search
        required_name(part)
    if recipe.parallel.engine == "local":
        from sdxl_ray.training.local import default_device, run_local

        files = preflight(recipe, default_device().type)
        images = scan_images(recipe)
        with locked(place.root / name), keeping_run(place, name):
            run = _open(recipe, place, name, images, extend)
            summary = _ended(run, on_row)
            if summary is None:
                report_notes(run_notes(recipe, images, files), on_row)
                summary = run_local(recipe, run, on_row, place)
        return RunResult(run.folder, run.artifact, summary, place.kept_at(run.folder))
    return _launch_on_ray(recipe, place, name, address, extend, on_row)


def keeping_run(storage: Storage, name: str) -> AbstractContextManager[None]:
    """Inside, an interrupt reports what the run of this name keeps."""
    folder = storage.root / name

    def line() -> str:
        names = [path.parent.name for path in folder.glob("checkpoints/step-*/manifest.json")]
        steps = [int(name.removeprefix("step-")) for name in names if name.removeprefix("step-").isdigit()]
        newest = f"the checkpoint of step {max(steps)}" if steps else "its recipe and images, no checkpoint yet"
        newest = "its last checkpoint" if storage.url is not None else newest  # this machine may have no copy of it
        return f"{storage.kept_at(folder)} keeps {newest}; the same command resumes it"

    return keeping(line)


def _open(recipe: Recipe, storage: Storage, name: str, images: Splits, more: bool) -> RunFolder:
    """The run's folder, as it is in the storage, and in the storage as it is now. more: with more steps than it had."""
    storage.get_folder(storage.root / name, APART)
    if more:
        extend_run(recipe, RunFolder(storage.root / name, storage.root / "cache"))
    run = open_run(recipe, storage.root, name, images)
    storage.put_folder(run.folder, APART)
    return run


def _launch_on_ray(
    recipe: Recipe, storage: Storage, name: str, address: str | None, extend: bool, on_row: OnRow
) -> RunResult:
    from sdxl_ray.distributed.cluster import connected, gpus_per_worker
    from sdxl_ray.distributed.nodes import require_shared
    from sdxl_ray.distributed.ray_data import encode_stream, scan_stream, streams
    from sdxl_ray.distributed.worker_paths import require_visible

    require_trackers(recipe)
    files = preflight(recipe, "cuda")  # what a GPU would refuse too, before any cluster is waited for
    streaming = streams(recipe)
    images = None if streaming else scan_images(recipe)
    on_row({"kind": "phase", "name": "connecting to Ray", "done": 0, "total": 0})
    with connected(address, recipe.parallel.workers[1] * recipe.resources.cpus_per_worker), keeping_run(storage, name):
        gpus = gpus_per_worker(recipe)
        require_available(recipe.optim, "cuda" if gpus else "cpu")
        require_shared(storage)
        require_visible(recipe.local_paths)
        images = images or scan_stream(recipe, on_row)
        with locked(storage.root / name):
            run = _open(recipe, storage, name, images, extend)
            summary = _ended(run, on_row)
            if summary is None:
                report_notes(run_notes(recipe, images, files), on_row)
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
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig

    from sdxl_ray.distributed.exported import exported
    from sdxl_ray.distributed.progress_channel import fatal_error, forwarded, open_channel

    least, most = recipe.parallel.workers
    channel = open_channel()
    config = worker_config(recipe, run, storage, channel)
    files, root = storage.filesystem()
    trainer = trainer_class()(
        train_worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": recipe.resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {}),
        ),
        run_config=RunConfig(
            # A fresh name each time: a run resumes from its own checkpoints, not from Ray's state of a driver.
            name=uuid.uuid4().hex[:12],
            storage_path=f"{root}/{config['name']}/ray",
            storage_filesystem=files,
            failure_config=FailureConfig(max_failures=recipe.resources.max_failures),
        ),
    )
    on_row({"kind": "phase", "name": f"starting {most} worker{'s' if most > 1 else ''}", "done": 0, "total": 0})
    settings = DEFAULTS if least == most else {**DEFAULTS, **ELASTIC}
    with forwarded(channel, on_row), exported(settings, unless_set=True):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            ended_of = fatal_error(channel)
            raise ended_of or RunError(f"training failed: {cause(error)}; the same command resumes it") from error
        except OSError as error:  # Ray Train itself writes to the storage too
            raise RunError(f"training failed: {cause(error)}; the same command resumes it") from error
    if (ended_of := fatal_error(channel)) is not None:
        raise ended_of
    storage.get_folder(run.folder, APART)
    summary = run.summary()
    if summary is None:
        raise RunError(
            f"the workers ended without an artifact in {str(run.folder)!r}: their logs are in Ray's session folder"
        )
    return summary


def worker_config(recipe: Recipe, run: RunFolder, storage: Storage, channel: Any) -> dict[str, Any]:
    """The argument of `train_worker`."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "name": run.folder.relative_to(storage.root).as_posix(),
        "folder": str(run.folder),
        "cache": str(run.cache),
        "channel": channel,
        "storage": storage.url,
        "driver": working_directory(),
    }
