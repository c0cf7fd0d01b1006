"""Checkpoint backends: where finished checkpoints are stored, a folder that every rank sees or object storage.

Both keep the rule that nothing partial has a final name: a folder is renamed when it is whole; object storage cannot
rename, so there `manifest.json` is sent last, and a checkpoint without one does not exist.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Protocol

from sdxl_ray.errors import RunError
from sdxl_ray.io.collectives import Collectives, leads_machine
from sdxl_ray.io.file_hash import sha256
from sdxl_ray.io.storage import Storage

FORMAT = 1
MANIFEST = "manifest.json"


class CheckpointBackend(Protocol):
    """What a `CheckpointStore` needs of its storage. Problems come back as text."""

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, in no order. Called on rank 0."""

    def upload(self, partial: Path, final: Path, name: str) -> None:
        """This rank has written `partial/name`: send it. Raises OSError or RunError."""

    def commit(self, partial: Path, final: Path, manifest: dict[str, Any]) -> str | None:
        """Rank 0: every file is written; from here on the checkpoint exists. What went wrong, or None."""

    def discard_partial(self, partial: Path) -> None:
        """Every rank, after the commit or instead of it: remove files that are no longer needed."""

    def download(self, folder: Path) -> str | None:
        """Every rank: download a checkpoint and check this rank's part of it; what is wrong with it, or None."""

    def delete(self, folder: Path) -> None:
        """Rank 0: remove a checkpoint."""

    def clean(self) -> None:
        """Rank 0: remove what killed savers left behind."""


class FolderBackend:
    """Checkpoints in a folder that every rank sees."""

    def __init__(self, folder: Path, group: Collectives) -> None:
        self._folder, self._group = folder, group

    def steps(self) -> list[int]:
        return steps_of(path.name for path in self._folder.glob("step-*")) if self._folder.is_dir() else []

    def upload(self, partial: Path, final: Path, name: str) -> None:
        pass

    def commit(self, partial: Path, final: Path, manifest: dict[str, Any]) -> str | None:
        try:
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
        except OSError as error:
            return error.strerror or str(error)
        return None

    def discard_partial(self, partial: Path) -> None:
        if self._group.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)

    def download(self, folder: Path) -> str | None:
        return damage(folder, self._group.rank, self._group.world)

    def delete(self, folder: Path) -> None:
        # Its name goes first: a kill meanwhile must not leave half a checkpoint under the name of a whole one.
        going = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(going, ignore_errors=True)
        with contextlib.suppress(OSError):  # one too many does no harm, and the next save tries again
            folder.rename(going)
        shutil.rmtree(going, ignore_errors=True)

    def clean(self) -> None:
        for leftover in self._folder.glob("step-*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)


class StorageBackend:
    """Checkpoints in a store; the folder is scratch of this machine. Each rank sends what it wrote.

    One rank of a machine fetches all files of a checkpoint, since any of them may be read by each of its ranks.
    """

    def __init__(self, folder: Path, group: Collectives, storage: Storage) -> None:
        self._folder, self._storage = folder, storage
        self._leads = leads_machine(group, storage.root)

    def steps(self) -> list[int]:
        names = (name.partition("/") for name in self._storage.names(self._folder))
        return steps_of(folder for folder, _, file in names if file == MANIFEST)

    def upload(self, partial: Path, final: Path, name: str) -> None:
        self._storage.put(partial / name, final / name)

    def commit(self, partial: Path, final: Path, manifest: dict[str, Any]) -> str | None:
        try:
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
            self._storage.put(partial / MANIFEST, final / MANIFEST)
        except (OSError, RunError) as error:
            return str(error)
        return None

    def discard_partial(self, partial: Path) -> None:
        if self._leads:
            shutil.rmtree(partial, ignore_errors=True)

    def download(self, folder: Path) -> str | None:
        if not self._leads:
            return None
        for other in self._folder.glob("step-*"):
            shutil.rmtree(other, ignore_errors=True)  # scratch holds one checkpoint at a time
        try:
            self._storage.get(folder / MANIFEST)
            for name in json.loads((folder / MANIFEST).read_text())["files"]:
                if Path(name).name == name:
                    self._storage.get(folder / name)
        except (OSError, RunError, ValueError, KeyError, TypeError) as error:
            return str(error)
        return damage(folder, 0, 1)

    def delete(self, folder: Path) -> None:
        with contextlib.suppress(RunError):  # one too many does no harm, and the next save tries again
            self._storage.remove(folder / MANIFEST)
            self._storage.remove(folder)

    def clean(self) -> None:
        whole = set(self.steps())
        with contextlib.suppress(RunError):
            for name in {name.partition("/")[0] for name in self._storage.names(self._folder)}:
                if not whole.issuperset(steps_of([name])):
                    self.delete(self._folder / name)


def steps_of(names: Any) -> list[int]:
    """The steps in names like `step-0000100`; others are passed over."""
    steps = []
    for name in names:
        with contextlib.suppress(ValueError):
            steps.append(int(name.removeprefix("step-")))
    return steps


def damage(folder: Path, rank: int, world: int) -> str | None:
    """What is wrong with this rank's share of a checkpoint's files, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            return f"{MANIFEST} has format {manifest['format']}, this version reads {FORMAT}"
        if manifest.pop("sha256", None) != own_hash(manifest) or folder.name != f"step-{manifest['step']:07d}":
            return f"{MANIFEST} has changed"
        for name, digest in sorted(manifest["files"].items())[rank::world]:
            path = folder / name
            if Path(name).name != name or path.is_symlink() or not path.is_file():
                return f"{name} is missing"
            if sha256(path) != digest:
                return f"{name} has changed: its SHA-256 is not {digest}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {error}"
    return None


def own_hash(manifest: dict[str, Any]) -> str:
    """Digest of the manifest's other fields: step, world and metrics steer a resumed run as much as the files do."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
