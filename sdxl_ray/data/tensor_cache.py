"""Tensors kept by key in Parquet parts: VAE posteriors and text embeddings that are computed once.

A folder (a path or any URL that pyarrow.fs knows) holds one folder a namespace; the namespace names everything but the
key that made the content. Parts are written under a temporary name, then moved, and have unique names, so any number of
workers may write. Each tensor carries a SHA-256; a damaged part is logged, left out, and its keys are missing again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyarrow import fs
from torch import Tensor

from sdxl_ray.errors import RunError, UserError

log = logging.getLogger(__name__)

#: Part of every namespace: raise it when the rows below change their meaning.
FORMAT = 1
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("name", pa.string()),
        ("dtype", pa.string()),
        ("shape", pa.list_(pa.int64())),
        ("bytes", pa.large_binary()),
        ("sha256", pa.binary(32)),
    ]
)
# Small enough to read a few latents without their hundred neighbours.
_GROUP_BYTES = 2 * 2**20
_ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)


class MissingTensors(RunError):  # noqa: N818 - reads as what happened: `except MissingTensors as missing: missing.keys`
    """Keys that are not (or, after damage was found, no longer) in the cache: compute and write them."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = tuple(keys)
        super().__init__(self.keys)

    def __str__(self) -> str:
        return f"{len(self.keys)} tensors are not in the cache (first {self.keys[0]!r}): run again to compute them"


def namespace(prefix: str, /, **what: Any) -> str:
    """`prefix` and a hash of all that decides the content besides the key: base revision, precision, code version.

    `what` must be plain JSON. The same arguments give the same name everywhere.
    """
    made_of = json.dumps({"format": FORMAT, **what}, sort_keys=True)
    return f"{prefix}-{hashlib.sha256(made_of.encode()).hexdigest()[:32]}"


@dataclass(frozen=True)
class _Part:
    path: str
    metadata: Any
    groups: tuple[tuple[str, ...], ...]  # keys of each row group


_Row = tuple[torch.dtype, list[int], bytes]


class TensorCache:
    """Tensors of any dtype by key. Safe to share between threads, to pickle, and to write from many workers at once.

    Memory: the keys, and at most `budget_bytes` of row groups read last (at least one).
    """

    def __init__(self, where: str | Path, namespace: str, *, budget_bytes: int = 256 * 2**20) -> None:
        """Raises UserError when `where` is no path and no URL that can be opened."""
        self._arguments = (str(where), namespace, budget_bytes)
        self._files, folder = _filesystem(str(where))
        self._folder = f"{folder.rstrip('/')}/{namespace}"
        self._budget_bytes = budget_bytes
        self._lock = threading.RLock()
        self._parts: dict[str, _Part] = {}
        self._damaged: set[str] = set()
        self._index: dict[str, tuple[str, int]] = {}
        self._recent: OrderedDict[tuple[str, int], dict[str, dict[str, _Row]]] = OrderedDict()
        self._recent_bytes = 0
        self.refresh()

    def __reduce__(self) -> tuple[Any, ...]:
        where, name, budget_bytes = self._arguments
        return _reopen, (where, name, budget_bytes)

    @property
    def folder(self) -> Path:
        """Where the parts of a cache on a disk are."""
        return Path(self._folder)

    def refresh(self) -> None:
        """Look again for parts, written by other workers since."""
        with self._lock:
            present = {path for path in self._list() if path not in self._damaged}
            for path in present - self._parts.keys():
                try:
                    self._parts[path] = self._open(path)
                except _ARROW_ERRORS as error:
                    self._leave_out(path, error)
            self._parts = {path: part for path, part in self._parts.items() if path in present}
            self._reindex()

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that are not in the cache, each once, in order."""
        with self._lock:
            return [key for key in dict.fromkeys(keys) if key not in self._index]

    def write(self, items: Iterable[tuple[str, Mapping[str, Tensor]]]) -> None:
        """One part with all items, which are taken one at a time; it appears whole or not at all.

        Raises RunError when the disk is full or cannot be written; what was there stays.
        """
        name = uuid.uuid4().hex
        temporary, final = f"{self._folder}/.{name}.tmp", f"{self._folder}/part-{name}.parquet"
        groups = _groups(items)
        first = next(groups, None)
        if first is None:
            return
        try:
            self._files.create_dir(self._folder, recursive=True)
            with (
                self._files.open_output_stream(temporary) as out,
                pq.ParquetWriter(
                    out, _SCHEMA, compression="none", use_dictionary=False, write_statistics=False
                ) as writer,
            ):
                writer.write_table(first)
                for group in groups:
                    writer.write_table(group)
            self._files.move(temporary, final)
        except (OSError, pa.ArrowException) as error:
            self._discard(temporary)
            full = getattr(error, "errno", None) == errno.ENOSPC
            what = "is full: free space or choose another cache folder" if full else f"cannot be written ({error})"
            raise RunError(f"cache {self._folder!r} {what}; what was there is intact") from None
        except BaseException:
            self._discard(temporary)  # an item failed to compute: leave no half part
            raise
        self.refresh()

    def read(self, keys: Iterable[str]) -> list[dict[str, Tensor]]:
        """The tensors of each key, in order, as fresh copies on the CPU.

        Raises MissingTensors: keys never written, or in a part that proved damaged just now.
        """
        wanted = list(keys)
        with self._lock:
            found = [self._read(key) for key in wanted]
            lost = self.missing(key for key, rows in zip(wanted, found, strict=True) if rows is None)
        if lost:
            raise MissingTensors(lost)
        return [{name: _tensor(row) for name, row in rows.items()} for rows in found if rows is not None]

    def _read(self, key: str) -> dict[str, _Row] | None:
        while key in self._index:
            path, group = self._index[key]
            try:
                return self._group(path, group)[key]
            except _ARROW_ERRORS as error:
                self._leave_out(path, error)
                self._reindex()  # another part may hold the key too
        return None

    def _group(self, path: str, group: int) -> dict[str, dict[str, _Row]]:
        place = (path, group)
        if place in self._recent:
            self._recent.move_to_end(place)
            return self._recent[place]
        part = self._parts[path]
        with self._files.open_input_file(path) as source:
            table = pq.ParquetFile(source, metadata=part.metadata).read_row_group(group)
        rows = _decode(table)
        self._recent[place] = rows
        self._recent_bytes += _size(rows)
        while self._recent_bytes > self._budget_bytes and len(self._recent) > 1:
            _, oldest = self._recent.popitem(last=False)
            self._recent_bytes -= _size(oldest)
        return rows

    def _list(self) -> list[str]:
        selector = fs.FileSelector(self._folder, allow_not_found=True)
        try:
            found = self._files.get_file_info(selector)
        except OSError as error:
            raise UserError(
                f"cache {self._folder!r} cannot be listed ({error}): check the address and its rights"
            ) from None
        return [info.path for info in found if info.base_name.startswith("part-") and info.extension == "parquet"]

    def _open(self, path: str) -> _Part:
        with self._files.open_input_file(path) as source:
            file = pq.ParquetFile(source)
            if not file.schema_arrow.equals(_SCHEMA):
                raise ValueError("its columns are not a cache's")
            keys = iter(file.read(columns=["key"]).column(0).to_pylist())
            rows = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            groups = [tuple(dict.fromkeys(islice(keys, count))) for count in rows]
            return _Part(path, file.metadata, tuple(groups))

    def _reindex(self) -> None:
        # Of two parts with a key the one with the lesser name counts, for every reader the same.
        self._index = {
            key: (path, number)
            for path in sorted(self._parts, reverse=True)
            for number, keys in enumerate(self._parts[path].groups)
            for key in keys
        }

    def _leave_out(self, path: str, error: Exception) -> None:
        log.warning("cache part %s is damaged (%s) and left out; its tensors are computed again", path, error)
        self._damaged.add(path)
        self._parts.pop(path, None)

    def _discard(self, temporary: str) -> None:
        with contextlib.suppress(OSError):  # it was never made, or went with the disk
            self._files.delete_file(temporary)


def _reopen(where: str, name: str, budget_bytes: int) -> TensorCache:
    return TensorCache(where, name, budget_bytes=budget_bytes)


def _filesystem(where: str) -> tuple[Any, str]:
    if "://" not in where:
        return fs.LocalFileSystem(), str(Path(where).absolute())
    try:
        files, path = fs.FileSystem.from_uri(where)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cache address {where!r} cannot be opened ({reason}): give a path, s3://… or gs://…") from None
    return files, str(path)


def _groups(items: Iterable[tuple[str, Mapping[str, Tensor]]]) -> Iterator[Any]:
    """Arrow tables of about _GROUP_BYTES; all tensors of a key stay in one."""
    rows: list[dict[str, Any]] = []
    pending_bytes = 0
    for key, tensors in items:
        for name, tensor in tensors.items():
            rows.append(_row(key, name, tensor))
            pending_bytes += len(rows[-1]["bytes"])
        if pending_bytes >= _GROUP_BYTES:
            yield pa.Table.from_pylist(rows, schema=_SCHEMA)
            rows, pending_bytes = [], 0
    if rows:
        yield pa.Table.from_pylist(rows, schema=_SCHEMA)


def _row(key: str, name: str, tensor: Tensor) -> dict[str, Any]:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    row = {
        "key": key,
        "name": name,
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        # As raw bytes: NumPy has no bfloat16, and nothing is rounded on the way.
        "bytes": flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"",
    }
    return {**row, "sha256": _sum(row)}


def _sum(row: Mapping[str, Any]) -> bytes:
    digest = hashlib.sha256(repr((row["key"], row["name"], row["dtype"], list(row["shape"]))).encode())
    digest.update(row["bytes"])
    return digest.digest()


def _decode(table: Any) -> dict[str, dict[str, _Row]]:
    rows: dict[str, dict[str, _Row]] = {}
    for row in table.to_pylist():
        if row["sha256"] != _sum(row):
            raise ValueError(f"the checksum of {row['key']!r} does not match")
        rows.setdefault(row["key"], {})[row["name"]] = (getattr(torch, row["dtype"]), row["shape"], row["bytes"])
    return rows


def _tensor(row: _Row) -> Tensor:
    dtype, shape, data = row
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def _size(rows: Mapping[str, Mapping[str, _Row]]) -> int:
    return sum(len(data) for tensors in rows.values() for _, _, data in tensors.values())
