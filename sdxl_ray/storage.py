"""Storage: where runs are kept, a folder of this machine or the URL of a store (`s3://`, `gs://`, `abfss://`, others).

A run works in a local folder either way. Under a URL that folder is scratch of this machine: whole files are copied to
the store when they are complete, and fetched where they are missing. An object appears in the store whole or not at
all; what has a manifest (checkpoints, artifacts) is complete there once its manifest is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs as pafs

from sdxl_ray.cachefolder import cache_root
from sdxl_ray.errors import RunError, UserError

T = TypeVar("T")

#: Tries of one transfer, and the seconds after which there is no other. With one more try, and the end of the other
#: workers, a store that answers nothing ends a run in a minute.
_TRIES, _PATIENCE_S = 4, 20.0
#: Seconds for a connection, and without a byte of an answer.
_CONNECT_S, _ANSWER_S = 5, 8
_AT_ONCE = 8
_BLOCK_BYTES = 4 * 2**20
#: Written after everything else: they say that the rest is there.
_LAST = ("summary.json", "manifest.json")


def is_url(where: str | Path) -> bool:
    """Whether a storage is named by a URL; one letter before the colon is a Windows drive."""
    return len(urlsplit(str(where)).scheme) > 1


def shown(url: str | None) -> str:
    """A URL as messages show it: without its options and its user, which may be secrets."""
    parts = urlsplit(url or "")
    user, _, host = parts.netloc.rpartition("@")
    container = user and parts.scheme.startswith("abfs") and ":" not in user  # Azure's, which is a part of the address
    return urlunsplit((parts.scheme, parts.netloc if container else host, parts.path, "", ""))


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
        """The storage at a path, a `file://` URL or another URL. Raises UserError for one that cannot be opened."""
        text = str(where)
        if not is_url(text):
            return cls(Path(text).absolute())
        if urlsplit(text).scheme == "file":
            host, path = urlsplit(text)[1:3]
            if host not in ("", "localhost"):
                raise UserError(f"storage {text!r} names a machine, {host!r}: write file:///{host}{path}, or a path")
            return cls(Path(path))
        files, base = open_url(text)
        # Without its options: a path of its own for each store, the same for all that name it.
        scratch = hashlib.sha256(text.partition("?")[0].rstrip("/").encode()).hexdigest()[:16]
        return cls(scratch_root() / scratch, text, files, base.rstrip("/"))

    def kept_at(self, path: Path) -> str:
        """Where something under `root` is kept, for a person."""
        if self.url is None:
            return str(path)
        return f"{shown(self.url).rstrip('/')}/{path.relative_to(self.root).as_posix()}"

    def filesystem(self) -> tuple[Any, str]:
        """pyarrow's file system of the storage, and the path of `root` in it."""
        return (pafs.LocalFileSystem(), str(self.root)) if self.url is None else (self._files, self._base)

    def require_readable(self) -> None:
        """Raise UserError where a store does not answer: asked before anything starts."""
        if self.url is None:
            return
        try:
            self.names(self.root / "nothing")
        except RunError as error:
            raise UserError(f"{error}; check the address and your rights") from None

    def names(self, folder: Path) -> dict[str, int]:
        """Bytes of every file below a folder in the store, by its name relative to it. Raises RunError."""
        selector = pafs.FileSelector(self._at(folder), recursive=True, allow_not_found=True)
        found = _patiently(lambda: self._files.get_file_info(selector), f"storage {shown(self.url)!r} cannot be read")
        names = {info.path[len(self._at(folder)) + 1 :]: info.size for info in found if info.is_file}
        return {name: size for name, size in names.items() if _plain(name)}

    def put(self, path: Path, under: Path | None = None) -> None:
        """Copy a file to the store, under its own path or that of `under`. Raises RunError after some tries."""
        target = self._at(under or path)

        def send() -> None:
            with path.open("rb") as source, self._files.open_output_stream(target) as sink:
                shutil.copyfileobj(source, sink, _BLOCK_BYTES)
            if self._files.get_file_info(target).size != path.stat().st_size:
                raise OSError(f"{target} is shorter than what was sent")

        _patiently(send, f"{path.name} could not be sent to {shown(self.url)!r}")

    def get(self, path: Path) -> None:
        """Fetch a file, which appears whole. Raises RunError after some tries."""
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.fetching")

        def fetch() -> None:
            with self._files.open_input_stream(self._at(path)) as source, beside.open("wb") as sink:
                shutil.copyfileobj(source, sink, _BLOCK_BYTES)

        try:
            _patiently(fetch, f"{path.name} could not be fetched from {shown(self.url)!r}")
            beside.rename(path)
        finally:
            beside.unlink(missing_ok=True)

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
        _together(lambda name: self.put(folder / name), [name for name in changed if name not in last])
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
        _together(lambda name: self.get(folder / name), there)

    def put_missing(self, folder: Path) -> None:
        """Send the files of a folder that the store lacks by name; for files that never change, as those of caches."""
        there = self.names(folder)
        _together(lambda name: self.put(folder / name), [name for name, _ in _local(folder, ()) if name not in there])

    def get_missing(self, folder: Path) -> None:
        """Fetch the files of a folder that are not here by name."""
        _together(lambda name: self.get(folder / name), [n for n in self.names(folder) if not (folder / n).exists()])

    def remove(self, path: Path) -> None:
        """Forget a file, or a folder with all in it; nothing happens when it is not there."""
        if self.url is None:
            return
        target = self._at(path)

        def forget() -> None:
            kind = self._files.get_file_info(target).type
            if kind == pafs.FileType.File:
                self._files.delete_file(target)
            elif kind == pafs.FileType.Directory:
                self._files.delete_dir(target)

        _patiently(forget, f"{path.name} could not be removed from {shown(self.url)!r}")

    def _at(self, path: Path) -> str:
        return f"{self._base}/{path.relative_to(self.root).as_posix()}".rstrip("/.")


def scratch_root() -> Path:
    """Where this machine keeps copies of stores: SDXL_RAY_SCRATCH (a large, quick disk), or the user's cache folder."""
    return Path(os.environ.get("SDXL_RAY_SCRATCH") or cache_root() / "scratch").absolute()


def open_url(url: str) -> tuple[Any, str]:
    """pyarrow's file system of a URL, through fsspec where pyarrow has none of its own, and the path in it.

    Credentials and AWS_ENDPOINT_URL come from the environment; `?endpoint_override=HOST:PORT&scheme=http&region=R` says
    the same for S3. Raises UserError.
    """
    try:
        if urlsplit(url).scheme == "s3":
            return _s3(url)
        try:
            files, path = pafs.FileSystem.from_uri(url)
        except pa.ArrowInvalid:
            import fsspec

            handler, path = fsspec.core.url_to_fs(url)
            files = pafs.PyFileSystem(pafs.FSSpecHandler(handler))
    except (ImportError, OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = reason.replace(url, shown(url))
        raise UserError(
            f"storage {shown(url)!r} cannot be opened: {reason}; give a path, s3://…, gs://… or abfss://…"
        ) from None
    return files, str(path)


def _s3(url: str) -> tuple[Any, str]:
    """With timeouts of our own, and tried again by `_patiently` alone: the defaults wait for minutes."""
    parts = urlsplit(url)
    options = {name: values[-1] for name, values in parse_qs(parts.query, strict_parsing=bool(parts.query)).items()}
    if not parts.netloc or (unknown := options.keys() - {"endpoint_override", "scheme", "region"}):
        raise ValueError(f"no option {min(unknown)!r}" if parts.netloc else "no bucket")
    if "@" in parts.netloc:
        raise ValueError("keys come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), not from the URL")
    # Arrow reads it only for URLs that it parses itself.
    address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if address and "endpoint_override" not in options:
        options |= {"scheme": urlsplit(address).scheme, "endpoint_override": urlsplit(address).netloc}
    retries = pafs.AwsStandardS3RetryStrategy(max_attempts=1)
    files = pafs.S3FileSystem(connect_timeout=_CONNECT_S, request_timeout=_ANSWER_S, retry_strategy=retries, **options)
    return files, f"{parts.netloc}{parts.path}"


def _patiently(work: Callable[[], T], what: str = "") -> T:
    """`work()`, tried again after OSErrors while there is time. Raises RunError."""
    began = time.monotonic()
    for attempt in range(_TRIES):
        try:
            return work()
        except OSError as error:
            if attempt == _TRIES - 1 or time.monotonic() - began > _PATIENCE_S:
                reason = (error.strerror or str(error)).splitlines()[0]
                raise RunError(f"{what}: {reason}" if what else reason) from None
            time.sleep(0.5 * 2**attempt)
    raise AssertionError("the last try returns or raises")


def _together(work: Callable[[str], None], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(_AT_ONCE, "storage") as pool:
        list(pool.map(work, names))


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
