"""Drawing for an evaluation on a cluster: plain Ray tasks that share the images, and meet where `render` waits.

    draw_on_workers(models, subject, prompts, settings, home=folder, workers=2)

The images and prior losses are then in `home`, which every node must see, and `evaluate` only scores. Under a URL
each node works in its scratch, and images travel before any worker uses them. A worker that dies ends the
drawing with one line; repeat the call to resume with what is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch

from sdxl_ray.config.schema import Base
from sdxl_ray.distributed.capacity import ClusterCapacity
from sdxl_ray.distributed.progress_channel import forwarded, open_channel
from sdxl_ray.distributed.worker_paths import base_here, path_here, require_visible
from sdxl_ray.errors import RunError, UserError
from sdxl_ray.evaluation.evaluated_models import EvaluatedModel
from sdxl_ray.evaluation.image_store import GenerationSettings, ImageStore
from sdxl_ray.evaluation.prompts import Prompts
from sdxl_ray.evaluation.runner import EvaluationPlan, EvaluationSettings, check, render
from sdxl_ray.evaluation.subject import Subject
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.io.collectives import leads_machine
from sdxl_ray.io.rows import OnRow
from sdxl_ray.io.storage import Storage
from sdxl_ray.io.storage.deadline import waits_reported
from sdxl_ray.paths import working_directory
from sdxl_ray.training.local import default_device

T = TypeVar("T")


def draw_on_workers(
    models: Sequence[EvaluatedModel],
    subject: Subject,
    prompts: Prompts,
    settings: EvaluationSettings,
    *,
    home: Path,
    workers: int,
    store: Storage | None = None,
    gpus: int | None = None,
    on_row: OnRow = lambda _: None,
) -> None:
    """Draw what `home` lacks on so many workers of the cluster that is connected; nothing starts when nothing is.

    workers: at most what the cluster has room for is used, since they wait for each other. store: the storage that
    `home` and the artifacts are in; None: every node sees both. gpus: of each worker; None: one where there are any.

    Raises UserError as `evaluate` does, before any worker starts, and RunError when one of them fails.
    """
    plan = check(models, subject, prompts, settings)
    drawn = ImageStore(home / "pictures")
    if all(drawn.has(job) for model in models for job in plan.jobs(model)):
        return
    room, store = ClusterCapacity.now(), store or Storage.of(home)
    require_visible(_paths(models, store))
    gpus = int(room.has("GPU")) if gpus is None else gpus
    fit = room.workers({"CPU": 1, "GPU": gpus})
    workers = workers if fit is None else max(1, min(workers, fit))
    if store.url is not None:
        store.put_missing(drawn.folder)
    channel, meeting = open_channel(), Meeting.remote(workers)  # type: ignore[attr-defined]  # added by ray.remote
    work = {
        "models": [_plain(model, store) for model in models],
        "class_name": subject.class_name,
        "prompts": prompts.model_dump(mode="json"),
        "settings": _settings(settings),
        "storage": store.url or str(store.root),
        "home": _within(home, store),
        "driver": working_directory(),
    }
    on_row({"kind": "phase", "name": f"starting {workers} worker{'s' if workers > 1 else ''}", "done": 0, "total": 0})
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_share)
    with forwarded(channel, on_row):
        waiting = [task.remote(rank, workers, work, meeting, channel) for rank in range(workers)]
        try:
            while waiting:  # one at a time, so that the first failure is seen while the others wait for it
                done, waiting = ray.wait(waiting, num_returns=1)
                ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise _said(error) from error
        except ray.exceptions.RayError as error:
            raise RunError(
                f"a worker that drew images died ({type(error).__name__}): repeat the call to resume"
            ) from error
        finally:
            for task_left in waiting:
                ray.cancel(task_left, force=True)
    if store.url is not None:
        store.get_missing(drawn.folder)


def capacity() -> int:
    """How many workers the connected cluster has room for: one a GPU, else one a CPU."""
    has = ray.cluster_resources()
    return int(has.get("GPU", 0) or has.get("CPU", 1))


@ray.remote(num_cpus=0)
class Meeting:
    """Where the ranks of one drawing wait for each other and leave values for each other."""

    def __init__(self, world: int) -> None:
        self._barrier = asyncio.Barrier(world)
        self._values: list[Any] = [None] * world

    async def gather(self, rank: int, value: Any) -> list[Any]:
        """The values of all ranks, once all are here."""
        self._values[rank] = value
        await self._barrier.wait()
        values = list(self._values)
        await self._barrier.wait()  # nobody comes again before everybody has read
        return values


class MetGroup:
    """A group of Ray tasks that meet in an actor.

    shared: the folder that all see alike after a barrier, of which each machine has its copy under a URL.
    """

    def __init__(self, rank: int, world: int, meeting: Any, storage: Storage, shared: Path) -> None:
        self.rank, self.world, self._meeting = rank, world, meeting
        self._storage, self._shared = storage, shared

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self._storage.url is None:
            self.gather(None)
            return
        if leading := leads_machine(self, self._storage.root):
            self._storage.put_missing(self._shared)
        self.gather(None)
        if leading:
            self._storage.get_missing(self._shared)
        self.gather(None)

    def gather(self, value: T) -> list[T]:
        """The values of all ranks in rank order, on every rank."""
        values: list[T] = ray.get(self._meeting.gather.remote(self.rank, value))
        return values


def _share(rank: int, world: int, work: dict[str, Any], meeting: Any, channel: Any) -> None:
    """One rank's part of the images; its waits for a store are notes of the run."""
    with waits_reported(lambda text: channel.put.remote({"kind": "note", "text": text})):
        _render_share(rank, world, work, meeting, channel)


def _render_share(rank: int, world: int, work: dict[str, Any], meeting: Any, channel: Any) -> None:
    """One rank's part of the images."""
    plain = dict(work["settings"])
    drawing, dtype = GenerationSettings(**plain.pop("drawing")), getattr(torch, plain.pop("dtype"))
    settings = EvaluationSettings(drawing, dtype=dtype, device=default_device(), **plain)
    storage = Storage.of(work["storage"])
    home = storage.root / work["home"]
    group = MetGroup(rank, world, meeting, storage, home / "pictures")
    if storage.url is not None and leads_machine(group, storage.root):
        for folder in {storage.root / model["artifact"] for model in work["models"] if model["artifact"]}:
            storage.get_folder(folder)
    group.barrier()
    models = [
        EvaluatedModel(
            model["name"],
            base_here(Base.model_validate(model["base"]), work["driver"]),
            Artifact.open(path_here(str(storage.root / model["artifact"]), work["driver"]))
            if model["artifact"]
            else None,
            model["words"],
        )
        for model in work["models"]
    ]
    plan = EvaluationPlan.of(models, work["class_name"], Prompts.model_validate(work["prompts"]), settings)

    def on_row(row: dict[str, Any]) -> None:
        if rank == 0:  # the others are as far
            counts = {key: row[key] * world for key in ("done", "total") if key in row}
            channel.put.remote(row | counts)

    render(models, plan, settings, home, group, on_row)


def _settings(settings: EvaluationSettings) -> dict[str, Any]:
    """Plain data; the device is each worker's own."""
    plain = asdict(settings) | {"dtype": str(settings.dtype).removeprefix("torch.")}
    del plain["device"]
    return plain


def _within(path: Path, store: Storage) -> str:
    """A path as every node finds it: relative to the storage's root, wherever a node has that."""
    path = path.absolute()
    return path.relative_to(store.root).as_posix() if path.is_relative_to(store.root) else str(path)


def _paths(models: Sequence[EvaluatedModel], store: Storage) -> dict[str, str]:
    """What workers read beside the storage: the bases and artifacts that are files of this machine."""
    found = {f"base.{name} of {m.name!r}": path for m in models for name, path in m.base.local_paths.items()}
    for model in models:
        if model.artifact is not None and Path(inside := _within(model.artifact.folder, store)).is_absolute():
            found[f"the artifact of {model.name!r}"] = inside
    return found


def _plain(model: EvaluatedModel, store: Storage) -> dict[str, Any]:
    return {
        "name": model.name,
        "base": model.base.model_dump(mode="json"),
        "artifact": _within(model.artifact.folder, store) if model.artifact else None,
        "words": model.words,
    }


def _said(error: ray.exceptions.RayTaskError) -> Exception:
    """The worker's own error where it is one for the user, else its last line."""
    cause = error.cause
    if isinstance(cause, UserError | RunError):
        return cause
    return RunError(f"drawing failed on a worker: {cause!r}; repeat the call to resume with what is missing")
