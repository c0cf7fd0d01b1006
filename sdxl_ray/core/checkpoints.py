"""Checkpoints of a run: written beside, hashed, listed, then renamed. Nothing partial has a final name.

A checkpoint folder `step-0000100` holds one safetensors file per worker (each holds *full* tensors of a share of the
parameters, so any number of workers and any ZeRO stage can read it), one small file per worker with counters, and
`manifest.json` with the SHA-256 of each. Only files that the manifest names, with that hash, are ever opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdxl_ray.core.group import Group
from sdxl_ray.errors import RunError

logger = logging.getLogger(__name__)

FORMAT = 1


@dataclass(frozen=True)
class CheckpointInfo:
    """A complete, verified checkpoint."""

    folder: Path
    step: int
    world: int
    files: tuple[Path, ...]
    meta: dict[str, Any]


class CheckpointStore:
    """The checkpoints under one folder that every rank sees."""

    def __init__(self, folder: Path, group: Group, *, keep: int, keep_best: bool) -> None:
        self._folder, self._group, self._keep, self._keep_best = folder, group, keep, keep_best

    def save(self, step: int, meta: dict[str, Any], write: Callable[[Path], list[Path]]) -> None:
        """Collective. `write(folder)` writes this rank's files and returns them; `meta` is plain JSON.

        Raises RunError on every rank when any rank could not write (a full disk); older checkpoints stay.
        """
        final = self._folder / f"step-{step:07d}"
        beside = self._folder / f"step-{step:07d}.partial"
        if self._group.rank == 0:
            shutil.rmtree(beside, ignore_errors=True)
        self._group.barrier()
        outcomes = self._group.gather(_attempt(beside, write))
        problems = [outcome for outcome in outcomes if isinstance(outcome, str)]
        if problems:
            self._give_up(beside, step, problems[0])
        files = {name: digest for outcome in outcomes if isinstance(outcome, dict) for name, digest in outcome.items()}
        manifest = {"format": FORMAT, "step": step, "world": self._group.world, "files": files, "meta": meta}
        manifest["sha256"] = _own_hash(manifest)
        problem = _commit(beside, final, manifest) if self._group.rank == 0 else None
        problem = self._group.gather(problem)[0]  # a barrier too: returning means committed
        if problem:
            self._give_up(beside, step, problem)
        if self._group.rank == 0:
            self._forget_old(step, meta)

    def latest(self) -> CheckpointInfo | None:
        """Collective. The newest checkpoint that is whole; damaged ones are named in the log and passed over."""
        steps = sorted(_steps(self._folder), reverse=True) if self._group.rank == 0 else []
        for step in self._group.gather(steps)[0]:
            found = self.at(step)
            if found is not None:
                return found
        return None

    def at(self, step: int) -> CheckpointInfo | None:
        """Collective. The checkpoint of a step; None, and a line in the log, when it is damaged or gone."""
        folder = self._folder / f"step-{step:07d}"
        problems = [p for p in self._group.gather(_damage(folder, self._group)) if p]
        if problems:
            if self._group.rank == 0:
                logger.warning("checkpoint %s is damaged (%s): using another one", folder.name, problems[0])
            return None
        manifest = json.loads((folder / "manifest.json").read_text())
        files = tuple(folder / name for name in manifest["files"])
        return CheckpointInfo(folder, step, manifest["world"], files, manifest["meta"])

    def clean(self) -> None:
        """Collective. Remove what killed savers left behind."""
        if self._group.rank == 0 and self._folder.is_dir():
            for leftover in self._folder.glob("step-*.partial"):
                shutil.rmtree(leftover, ignore_errors=True)
        self._group.barrier()

    def _give_up(self, beside: Path, step: int, problem: str) -> None:
        self._group.barrier()
        if self._group.rank == 0:
            shutil.rmtree(beside, ignore_errors=True)
        kept = f"{len(_steps(self._folder))} earlier checkpoint(s) are intact"
        raise RunError(f"checkpoint of step {step} could not be written: {problem}; {kept}")

    def _forget_old(self, now: int, meta: dict[str, Any]) -> None:
        # Later steps are damaged, or the run would have gone on from there: they must not push out the good ones.
        steps = sorted(step for step in _steps(self._folder) if step <= now)
        best = meta.get("best_step") if self._keep_best else None
        for step in steps[: -self._keep]:
            if step != best:
                shutil.rmtree(self._folder / f"step-{step:07d}", ignore_errors=True)


def _attempt(folder: Path, write: Callable[[Path], list[Path]]) -> dict[str, str] | str:
    """The hash of each file that `write` wrote, or what went wrong."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return {path.name: sha256(path) for path in write(folder)}
    except Exception as error:
        problem = disk_problem(error)
        if problem is None:
            raise
        return problem


def disk_problem(error: Exception) -> str | None:
    """What a disk that cannot be written says, or None for any other error."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # safetensors wraps OSError in its own exception type
    return str(error) if type(error).__name__ == "SafetensorError" else None


def _commit(beside: Path, final: Path, manifest: dict[str, Any]) -> str | None:
    try:
        (beside / "manifest.json").write_text(json.dumps(manifest, indent=1))
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _steps(folder: Path) -> list[int]:
    steps = []
    if folder.is_dir():
        for path in folder.glob("step-*"):
            with contextlib.suppress(ValueError):
                steps.append(int(path.name.removeprefix("step-")))
    return steps


def _damage(folder: Path, group: Group) -> str | None:
    """What is wrong with this rank's share of a checkpoint's files, or None."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["format"] != FORMAT:
            return f"manifest.json has format {manifest['format']}, this version reads {FORMAT}"
        if manifest.pop("sha256", None) != _own_hash(manifest) or folder.name != f"step-{manifest['step']:07d}":
            return "manifest.json has changed"
        for name, digest in sorted(manifest["files"].items())[group.rank :: group.world]:
            path = folder / name
            if Path(name).name != name or path.is_symlink() or not path.is_file():
                return f"{name} is missing"
            if sha256(path) != digest:
                return f"{name} has changed: its SHA-256 is not {digest}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json: {error}"
    return None


def _own_hash(manifest: dict[str, Any]) -> str:
    """Digest of the manifest's other fields: step, world and metrics steer a resumed run as much as the files do."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
