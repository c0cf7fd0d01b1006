"""A store's file system for Ray Train, which has no time limit of its own: its controller would wait for ever."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from sdxl_ray.errors import RunError
from sdxl_ray.io.storage.address import shown
from sdxl_ray.io.storage.deadline import patiently

T = TypeVar("T")


def bounded(files: Any, url: str) -> Any:
    """The same file system; a call that fails, or that the store does not answer in time, raises OSError."""
    return pafs.PyFileSystem(_Bounded(files, url))


class _Bounded(pafs.FileSystemHandler):  # type: ignore[misc]  # pyarrow has no types
    """Every call goes through `patiently`; none is tried again but the write of a whole file."""

    def __init__(self, files: Any, url: str) -> None:
        self._files, self._url = files, url

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bounded) and self._url == other._url

    def __hash__(self) -> int:
        return hash(self._url)

    def get_type_name(self) -> str:
        return f"bounded+{self._files.type_name}"

    def normalize_path(self, path: str) -> str:
        return str(self._files.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> Any:
        return self._call(lambda: self._files.get_file_info(paths))

    def get_file_info_selector(self, selector: Any) -> Any:
        return self._call(lambda: self._files.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        self._call(lambda: self._files.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        self._call(lambda: self._files.delete_dir(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._call(lambda: self._files.delete_dir_contents(path, missing_dir_ok=missing_dir_ok))

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("a whole store is not emptied")

    def delete_file(self, path: str) -> None:
        self._call(lambda: self._files.delete_file(path))

    def move(self, src: str, dest: str) -> None:
        self._call(lambda: self._files.move(src, dest))

    def copy_file(self, src: str, dest: str) -> None:
        self._call(lambda: self._files.copy_file(src, dest))

    def open_input_stream(self, path: str) -> Any:
        return self._stream(lambda: self._files.open_input_stream(path), "r")

    def open_input_file(self, path: str) -> Any:
        return self._stream(lambda: self._files.open_input_file(path), "r")

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        """Sends the file when it is closed, with tries: one failed call must not end a run whose store is there.

        Ray Train writes small files only, of which each replaces the one before.
        """
        return pa.PythonFile(_WholeFile(lambda data: self._write(path, data)), mode="w")

    def _write(self, path: str, data: bytes) -> None:
        def send(_: Any) -> None:
            with self._files.open_output_stream(path) as sink:
                sink.write(data)

        self._tried(send, once=False)

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        return self._stream(lambda: self._files.open_append_stream(path), "w")

    def _stream(self, opened: Callable[[], Any], mode: str) -> Any:
        return pa.PythonFile(_BoundedStream(self._call(opened), self._call), mode=mode)

    def _call(self, work: Callable[[], T]) -> T:
        """Once: a run that has found its store gone waits for Ray Train's controller too, call after call."""
        return self._tried(lambda _: work(), once=True)

    def _tried(self, work: Callable[[Any], T], *, once: bool) -> T:
        try:
            return patiently(work, f"storage {shown(self._url)!r} failed", self._url, once=once)
        except RunError as error:
            raise OSError(str(error)) from None


class _WholeFile:
    """What `pa.PythonFile` asks of a stream that is written: it holds the file until it is closed."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send, self._buffer = send, io.BytesIO()
        self.closed = False

    def write(self, data: Any) -> int:
        return self._buffer.write(data)

    def tell(self) -> int:
        return self._buffer.tell()

    def flush(self) -> None:
        """Nothing: what is sent is whole."""

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._send(self._buffer.getvalue())


class _BoundedStream:
    """What `pa.PythonFile` asks of a stream."""

    def __init__(self, stream: Any, call: Callable[[Callable[[], Any]], Any]) -> None:
        self._stream, self._call = stream, call

    @property
    def closed(self) -> bool:
        return bool(self._stream.closed)

    def read(self, count: int = -1) -> bytes:
        return bytes(self._call(lambda: self._stream.read(count if count >= 0 else None)))

    def write(self, data: Any) -> int:
        return int(self._call(lambda: self._stream.write(data)))

    def seek(self, position: int, whence: int = 0) -> int:
        return int(self._call(lambda: self._stream.seek(position, whence)))

    def tell(self) -> int:
        return int(self._stream.tell())

    def flush(self) -> None:
        self._call(self._stream.flush)

    def close(self) -> None:
        self._call(self._stream.close)
