"""Files and folders that appear under their final names whole or not at all.

with whole_file(folder / "grid.png") as draft:
    image.save(draft, format="PNG")
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path, *, shared: bool = False, durable: bool = False) -> Iterator[Path]:
    """Yield the path of a draft beside `path`; afterwards it gets that name, or is removed if the block raised.

    shared: other processes may write the same file at the same time, so the draft gets a unique name; a process that
    is killed leaves it there. durable: the bytes are on the disk before the name is. Raises OSError.
    """
    own = f".{uuid.uuid4().hex}" if shared else ""
    draft = path.with_name(f".{path.name}{own}.partial")
    try:
        yield draft
        if durable:
            with draft.open("rb") as stream:
                os.fsync(stream.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def write_bytes(path: Path, data: bytes, *, shared: bool = False, durable: bool = False) -> Path:
    """Write a whole file and return its path; options as `whole_file` has them."""
    with whole_file(path, shared=shared, durable=durable) as draft:
        draft.write_bytes(data)
    return path


def write_text(path: Path, text: str, *, shared: bool = False, durable: bool = False) -> Path:
    """Write a whole UTF-8 file and return its path; options as `whole_file` has them."""
    return write_bytes(path, text.encode(), shared=shared, durable=durable)


def publish(draft: str | Path, final: str | Path) -> Path:
    """Rename a finished folder to its final name on the same disk; what was there before goes only after that."""
    draft, final = Path(draft), Path(final)
    before = final.with_name(f".{final.name}.before")
    if before.exists():  # left by a process that died between the two renames
        shutil.rmtree(before)
    if final.exists():
        final.rename(before)
    draft.rename(final)
    shutil.rmtree(before, ignore_errors=True)
    return final


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty draft beside `path`; afterwards it is published there, or removed if the block raised.

    Folders above `path` are made. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        publish(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
