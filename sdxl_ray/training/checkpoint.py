"""Checkpoints of a run: written beside, hashed, listed, then committed. Nothing partial has a final name.

A checkpoint folder `step-0000100` holds one safetensors file per worker (each holds *full* tensors of a share of the
parameters, so any number of workers and any ZeRO stage can read it), one small file per worker with counters, and
`manifest.json` with the SHA-256 of each. Only files that the manifest names, with that hash, are ever opened.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdxl_ray.errors import RunError
from sdxl_ray.io.collectives import Collectives
from sdxl_ray.io.file_hash import sha256
from sdxl_ray.io.storage import Storage
from sdxl_ray.training.checkpoint_backends import (
    FORMAT,
    MANIFEST,
    CheckpointBackend,
    FolderBackend,
    StorageBackend,
    own_hash,
)
from sdxl_ray.training.disk_errors import disk_problem

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointInfo:
    """A complete, verified checkpoint."""

    folder: Path
    step: int
    world: int
    files: tuple[Path, ...]
    meta: dict[str, Any]


class CheckpointStore:
    """The checkpoints under one folder: one that every rank sees, or the scratch of a `storage` that is a URL."""

    def __init__(
        self, folder: Path, group: Collectives, *, keep: int, keep_best: bool, storage: Storage | None = None
    ) -> None:
        self._folder, self._group, self._keep, self._keep_best = folder, group, keep, keep_best
        self._backend: CheckpointBackend
        if storage is not None and storage.url is not None:
            self._backend = StorageBackend(folder, group, storage)
        else:
            self._backend = FolderBackend(folder, group)

    def save(self, step: int, meta: dict[str, Any], write: Callable[[Path], list[Path]]) -> str:
        """Collective. `write(folder)` writes this rank's files and returns them; `meta` is plain JSON.

        Returns the manifest's own hash, which names this checkpoint and no other.
        Raises RunError on every rank when any rank could not write (a full disk); older checkpoints stay.
        """
        final = self._folder / f"step-{step:07d}"
        partial = self._folder / f"step-{step:07d}.partial"
        self._backend.discard_partial(partial)
        self._group.barrier()
        outcomes = self._group.gather(self._attempt(partial, final, write))
        problems = [outcome for outcome in outcomes if isinstance(outcome, str)]
        if problems:
            self._give_up(partial, step, problems[0])
        files = {name: digest for outcome in outcomes if isinstance(outcome, dict) for name, digest in outcome.items()}
        manifest = {"format": FORMAT, "step": step, "world": self._group.world, "files": files, "meta": meta}
        manifest["sha256"] = digest = own_hash(manifest)
        problem = self._backend.commit(partial, final, manifest) if self._group.rank == 0 else None
        problem = self._group.gather(problem)[0]  # a barrier too: returning means committed
        if problem:
            self._give_up(partial, step, problem)
        self._backend.discard_partial(partial)
        if self._group.rank == 0:
            with contextlib.suppress(RunError):  # a store that cannot be listed just now keeps one too many
                self._delete_old(step, meta)
        return digest

    def latest(self) -> CheckpointInfo | None:
        """Collective. The newest checkpoint that is whole; damaged ones are named in the log and passed over."""
        steps = sorted(self._backend.steps(), reverse=True) if self._group.rank == 0 else []
        for step in self._group.gather(steps)[0]:
            found = self.at(step)
            if found is not None:
                return found
        return None

    def at(self, step: int) -> CheckpointInfo | None:
        """Collective. The checkpoint of a step; None, and a line in the log, when it is damaged or gone."""
        folder = self._folder / f"step-{step:07d}"
        problems = [p for p in self._group.gather(self._backend.download(folder)) if p]
        if problems:
            if self._group.rank == 0:
                logger.warning("checkpoint %s is damaged (%s): using another one", folder.name, problems[0])
            return None
        manifest = json.loads((folder / MANIFEST).read_text())
        files = tuple(folder / name for name in manifest["files"])
        return CheckpointInfo(folder, step, manifest["world"], files, manifest["meta"])

    def clean(self) -> None:
        """Collective. Remove what killed savers left behind."""
        if self._group.rank == 0:
            self._backend.clean()
        self._group.barrier()

    def _attempt(self, partial: Path, final: Path, write: Callable[[Path], list[Path]]) -> dict[str, str] | str:
        """The hash of each file that `write` wrote, or what went wrong."""
        try:
            partial.mkdir(parents=True, exist_ok=True)
            hashes = {path.name: sha256(path) for path in write(partial)}
            for name in hashes:
                self._backend.upload(partial, final, name)
        except Exception as error:
            problem = disk_problem(error)
            if problem is None:
                raise
            return problem
        return hashes

    def _give_up(self, partial: Path, step: int, problem: str) -> None:
        self._group.barrier()
        self._backend.discard_partial(partial)
        raise RunError(f"checkpoint of step {step} could not be written: {problem}; earlier checkpoints are intact")

    def _delete_old(self, now: int, meta: dict[str, Any]) -> None:
        # Later steps are damaged, or the run would have gone on from there: they must not push out the good ones.
        steps = sorted(step for step in self._backend.steps() if step <= now)
        best = meta.get("best_step") if self._keep_best else None
        for step in steps[: -self._keep]:
            if step != best:
                self._backend.delete(self._folder / f"step-{step:07d}")
