"""Storage: where runs are kept, a folder of this machine or the URL of a store (`s3://`, `gs://`, `abfss://`, others).

A run works in a local folder either way. Under a URL that folder is scratch of this machine: whole files are copied to
the store when they are complete, and fetched where they are missing. An object appears in the store whole or not at
all; what has a manifest (checkpoints, artifacts) is complete there once its manifest is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.fs as pafs

from sdxl_ray.cache_folder import cache_root
from sdxl_ray.errors import RunError, UserError
from sdxl_ray.io.atomic import whole_file
from sdxl_ray.io.storage.address import expanded, resolved, shown
from sdxl_ray.io.storage.bounded import bounded
from sdxl_ray.io.storage.deadline import GivenUpError, Moved, patiently, together
from sdxl_ray.io.storage.filesystems import credentials, open_url

_BLOCK_BYTES = 4 * 2**20
#: Written after everything else: they say that the rest is there.
_LAST = ("summary.json", "manifest.json")


@dataclass(frozen=True)
class Storage:
    """`root`: the local folder in which runs work; `url`: the store that it mirrors, or None when it is the storage."""

    root: Path
    url: str | None = None
    _files: Any = None
    _base: str = ""
    _sent: dict[Path, tuple[int, int]] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, where: str | Path) -> Storage:
        """The storage at a path (`~` is home), a `file:` URL or another URL. Raises UserError."""
        place = resolved(where)
        if isinstance(place, Path):
            return cls(place)
        files, base = open_url(place)
        # Without its options: a path of its own for each store, the same for all that name it.
        scratch = hashlib.sha256(place.partition("?")[0].rstrip("/").encode()).hexdigest()[:16]
        return cls(scratch_root() / scratch, place, files, base.rstrip("/"))

    @classmethod
    def usable(cls, where: str | Path | Storage) -> Storage:
        """A storage that is asked now whether it can be used; a Storage was asked before. Raises UserError."""
        if isinstance(where, Storage):
            return where
        storage = cls.of(where)
        storage.require_usable()
        return storage

    def kept_at(self, path: Path) -> str:
        """Where something under `root` is kept, for a person."""
        if self.url is None:
            return str(path)
        return f"{shown(self.url).rstrip('/')}/{path.relative_to(self.root).as_posix()}"

    def filesystem(self) -> tuple[Any, str]:
        """pyarrow's file system of the storage, with the time limit of a store, and the path of `root` in it."""
        if self.url is None:
            return pafs.LocalFileSystem(), str(self.root)
        return bounded(self._files, self.url), self._base

    def require_usable(self) -> None:
        """Raise UserError where runs could not be kept; asked before anything starts. Leaves nothing behind."""
        if self.url is None:
            _require_folder(self.root)
            return
        try:
            self.names(self.root / "nothing")
            self.round_trip()
        except RunError as error:
            keys = credentials(self.url)
            raise UserError(
                f"{error}; check the address, the network and your rights{f' ({keys})' if keys else ''}"
            ) from None
        except OSError as error:
            raise UserError(
                f"scratch folder {str(self.root)!r} cannot be written: {error.strerror or error}; "
                "set SDXL_RAY_SCRATCH to a folder of this machine"
            ) from None

    def round_trip(self) -> bool:
        """Whether a small file can be written in the store, read and removed. Raises RunError or OSError."""
        probe = self.root / f".seen-{uuid.uuid4().hex}"
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_text(probe.name)
            self._send(probe, self._at(probe), f"storage {shown(self.url)!r} cannot be written", transfer=False)
            probe.unlink()
            self.get(probe)
            return probe.read_text() == probe.name
        finally:
            probe.unlink(missing_ok=True)
            with contextlib.suppress(RunError):  # what went wrong before is what is raised
                self.remove(probe)

    def names(self, folder: Path) -> dict[str, int]:
        """Bytes of every file below a folder in the store, by its name relative to it. Raises RunError."""
        at = self._at(folder)
        selector = pafs.FileSelector(at, recursive=True, allow_not_found=True)
        what = f"storage {shown(self.url)!r} cannot be read"
        found = patiently(lambda _: self._files.get_file_info(selector), what, str(self.url))
        names = {info.path[len(at) + 1 :]: info.size for info in found if info.is_file}
        return {name: size for name, size in names.items() if _plain(name)}

    def put(self, path: Path, under: Path | None = None) -> None:
        """Copy a file to the store, under its own path or that of `under`. Raises RunError after some tries."""
        self._send(path, self._at(under or path), f"{path.name} could not be sent to {shown(self.url)!r}")

    def get(self, path: Path) -> None:
        """Fetch a file, which appears whole. Raises RunError after some tries."""
        path.parent.mkdir(parents=True, exist_ok=True)
        what = f"{path.name} could not be fetched from {shown(self.url)!r}"
        with whole_file(path) as draft:

            def fetch(moved: Moved) -> None:
                with self._files.open_input_stream(self._at(path)) as source:
                    moved()  # before it writes: a transfer that was given up must not touch the file of a later one
                    with draft.open("wb") as sink:
                        _copy(source, sink, moved)

            patiently(fetch, what, str(self.url), transfer=True)

    def put_folder(self, folder: Path, skip: Collection[str] = ()) -> None:
        """Make the store's copy equal to a local folder, but for the names (or patterns) in `skip` right below it.

        Files that did not change since this object sent them are not sent again.
        """
        if self.url is None:
            return
        here = {name: (stat.st_mtime_ns, stat.st_size) for name, stat in _local(folder, skip)}
        for gone in self.names(folder).keys() - here.keys():
            if not _skipped(gone, skip):
                self.remove(folder / gone)
        changed = [name for name, stamp in here.items() if self._sent.get(folder / name) != stamp]
        last = [name for name in changed if name.endswith(_LAST)]
        together(lambda name: self.put(folder / name), [name for name in changed if name not in last])
        for name in sorted(last, key=lambda name: _LAST.index(name.rpartition("/")[2]), reverse=True):
            self.put(folder / name)
        self._sent.update({folder / name: here[name] for name in changed})

    def get_folder(self, folder: Path, skip: Collection[str] = ()) -> None:
        """Make a local folder equal to the store's copy, but for the names (or patterns) in `skip` right below it."""
        if self.url is None:
            return
        there = [name for name in self.names(folder) if not _skipped(name, skip)]
        for path in folder.iterdir() if folder.is_dir() else ():
            if not _skipped(path.name, skip):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        together(lambda name: self.get(folder / name), there)

    def put_missing(self, folder: Path) -> None:
        """Send the files of a folder that the store lacks by name; for files that never change, as those of caches."""
        there = self.names(folder)
        together(lambda name: self.put(folder / name), [name for name, _ in _local(folder, ()) if name not in there])

    def get_missing(self, folder: Path) -> None:
        """Fetch the files of a folder that are not here by name."""
        together(lambda name: self.get(folder / name), [n for n in self.names(folder) if not (folder / n).exists()])

    def remove(self, path: Path) -> None:
        """Forget a file, or a folder with all in it; nothing happens when it is not there."""
        if self.url is None:
            return
        target = self._at(path)

        def forget(_: Moved) -> None:
            kind = self._files.get_file_info(target).type
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                if kind == pafs.FileType.File:
                    self._files.delete_file(target)
                elif kind == pafs.FileType.Directory:
                    self._files.delete_dir(target)

        patiently(forget, f"{path.name} could not be removed from {shown(self.url)!r}", str(self.url))

    def _send(self, path: Path, target: str, what: str, *, transfer: bool = True) -> None:
        def send(moved: Moved) -> None:
            def alive() -> None:
                with contextlib.suppress(GivenUpError):  # closed before its end, it would look like a whole object
                    moved()

            with path.open("rb") as source, self._sink(target) as sink:
                _copy(source, sink, alive)
            if self._files.get_file_info(target).size != path.stat().st_size:
                raise OSError(f"{target} is shorter than what was sent")

        patiently(send, what, str(self.url), transfer=transfer)

    def _sink(self, target: str) -> Any:
        """A stream to an object; where a store has real folders, its folder is made."""
        try:
            return self._files.open_output_stream(target)
        except FileNotFoundError:
            if not isinstance(self._files, pafs.PyFileSystem):  # a bucket that is not there is not ours to make
                raise
            self._files.create_dir(target.rpartition("/")[0], recursive=True)
            return self._files.open_output_stream(target)

    def _at(self, path: Path) -> str:
        name = path.relative_to(self.root).as_posix()
        return self._base if name == "." else f"{self._base}/{name}"


def scratch_root() -> Path:
    """Where this machine keeps copies of stores: SDXL_RAY_SCRATCH (a large, quick disk), or the user's cache folder."""
    return expanded(os.environ.get("SDXL_RAY_SCRATCH") or str(cache_root() / "scratch")).absolute()


def _require_folder(root: Path) -> None:
    """Raise UserError where a folder is not there and cannot be made, or cannot be written. It makes nothing."""
    fix = "give another --storage"
    try:
        there = next(place for place in (root, *root.parents) if _exists(place))
    except OSError as error:  # a link to nothing, a name too long, a folder that cannot be entered
        raise UserError(f"storage {str(root)!r} cannot be used: {error.strerror}; {fix}") from None
    if not there.is_dir():
        what = "is a file, not a folder" if there == root else f"cannot be made: {str(there)!r} is a file"
        raise UserError(f"storage {str(root)!r} {what}; {fix}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"storage {str(root)!r} cannot be written: no rights in {str(there)!r}; {fix}")


def _exists(place: Path) -> bool:
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return bool(place.stat())


def _copy(source: Any, sink: Any, moved: Moved) -> None:
    while block := source.read(_BLOCK_BYTES):
        sink.write(block)
        moved()


def _local(folder: Path, skip: Collection[str]) -> Iterable[tuple[str, Any]]:
    """(name, stat) of the files below a folder; hidden ones are not finished."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if _skipped(name, skip) or path.name.startswith("."):
            continue
        if path.is_file() and not path.is_symlink():
            yield name, path.stat()


def _skipped(name: str, skip: Collection[str]) -> bool:
    return any(fnmatchcase(name.partition("/")[0], pattern) for pattern in skip)


def _plain(name: str) -> bool:
    """Whether a name from a store stays below its folder; any other one is not ours."""
    pure = PurePosixPath(name)
    return bool(name) and not pure.is_absolute() and ".." not in pure.parts and "\\" not in name
