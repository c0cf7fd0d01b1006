"""Stores that fail: a port that takes connections and never answers, and a file system with faults of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tests.bucket import free_port

#: A URL of each kind of store on a port of loopback, and the environment that it needs.
AZURE = "blob_storage_authority=127.0.0.1:{port}&dfs_storage_authority=127.0.0.1:{port}&enable_tls=false"
KINDS = {
    "s3": "s3://bucket/runs?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1",
    "gs": "gs://anonymous@bucket/runs?endpoint_override=127.0.0.1:{port}&scheme=http",
    "gs by environment": "gs://bucket/runs",
    "abfss": f"abfss://runs@account.dfs.core.windows.net/x?{AZURE}&credential_kind=anonymous",
    "webhdfs": "webhdfs://127.0.0.1:{port}/runs",
    "ftp": "ftp://127.0.0.1:{port}/runs",
}


@contextmanager
def silent() -> Iterator[int]:
    """The port of a server that takes connections and answers nothing."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def take() -> None:
            try:
                while True:
                    taken.append(listener.accept()[0])
            except OSError:  # closed
                return

        threading.Thread(target=take, daemon=True).start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for connection in taken:
                connection.close()


def dead_port() -> int:
    """A port of loopback where nobody listens."""
    return free_port()


class Faulty(LocalFileSystem):
    """Files of this machine; `faults` are raised, one a call; while `stalled`, a block of a file is not taken."""

    protocol = "faulty"
    cachable = False
    faults: list[Exception] = []
    calls = 0
    stalled = threading.Event()
    seconds_a_block = 0.0

    def info(self, path: str, **kwargs: Any) -> Any:
        type(self).calls += 1
        if self.faults:
            raise self.faults.pop(0)
        return super().info(path, **kwargs)

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        stream = super().open(path, mode, **kwargs)
        return _Slow(stream, type(self)) if "w" in mode else stream


class _Slow:
    def __init__(self, stream: Any, files: type[Faulty]) -> None:
        self._stream, self._files = stream, files

    def write(self, data: bytes) -> int:
        until = time.monotonic() + 60
        while self._files.stalled.is_set() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(self._files.seconds_a_block)
        return int(self._stream.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def faulty(folder: Path) -> Iterator[str]:
    """The URL of a store below a folder whose faults are those of `Faulty`."""
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    Faulty.faults, Faulty.calls, Faulty.seconds_a_block = [], 0, 0.0
    Faulty.stalled.clear()
    try:
        yield f"faulty://{folder}"
    finally:
        Faulty.stalled.clear()
