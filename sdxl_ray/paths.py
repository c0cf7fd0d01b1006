"""Paths as users write them: `~`, relative to the working directory, `file://`; and the names of run folders.

Every path setting becomes absolute when it is read, on the driver: Ray gives workers another working directory.
Entries of a file (recipe, space, experiment, serve configuration, load test) are relative to the working directory of
the command too; only `extends` is relative to the file that it stands in.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sdxl_ray.errors import UserError

#: One folder right below a storage: what every file system and store takes, on Windows too.
_BAD_IN_NAMES = re.compile(r'[\x00-\x1f/\\:*?"<>|]')
_LONGEST_NAME = 128
#: Folders below a storage that are no runs.
_RESERVED = ("cache",)
#: How a path begins where a name could stand too: `./tiny`, `../x`, `~/x`, `/x`.
_AS_PATH = re.compile(r"(\.{1,2}|~[^/\\]*)?([/\\]|$)")


def local_path(text: str) -> str:
    """The absolute path of `text`: `~` is home, `file://` is decoded, all else is relative to the working directory.

    Symbolic links stay. Raises ValueError for an empty text, another URL, and a home that does not exist.
    """
    return os.path.abspath(_expanded(text))  # noqa: PTH100 - Path.absolute keeps `..`, Path.resolve follows links


def _expanded(text: str) -> str:
    """`text` with its home or file URL spelled out; a relative path stays one."""
    if not text:
        raise ValueError("is empty: give a path, or leave the setting out")
    scheme, host, path, *_ = urlsplit(text)
    if scheme == "file":
        if host not in ("", "localhost") or not path.startswith("/"):
            raise ValueError("a file URL has three slashes before the path: file:///data/photos")
        return os.path.normpath(unquote(path))
    if "://" in text and len(scheme) > 1:
        raise ValueError(f"is a URL of {scheme}: give a folder that every node mounts, or copy it here first")
    expanded = os.path.expanduser(text)  # noqa: PTH111 - Path.expanduser raises RuntimeError without naming the user
    if expanded.startswith("~") and not Path(text).exists():
        raise ValueError(f"there is no home folder {Path(text).parts[0]!r}: write the path in full")
    return expanded


def working_directory() -> str:
    """The working directory, also where it was deleted and made again.

    Ray does that to the package of a job when two of its nodes share a disk and the second one unpacks it.
    """
    try:
        return os.getcwd()  # noqa: PTH109 - text, as the paths are
    except FileNotFoundError:
        return os.environ.get("PWD", os.sep)


def path_or_name(text: str) -> str:
    """The absolute path where `text` is written as one (`./x`, `/x`, `~/x`, `file://`) or exists, else `text` itself.

    For settings that take a name or hub id as well as a path. Raises ValueError as `local_path` does.
    """
    written = _AS_PATH.match(text) is not None or text.startswith("file:")
    return local_path(text) if written or Path(text).exists() else text


def images_path(text: str) -> str:
    """The same for images: `subject:NAME`, of the subjects that ship with the package, stays as it is."""
    return text if text.startswith("subject:") else local_path(text)


def local_folder(text: str | Path) -> Path:
    """A folder that this process alone uses, as an argument names it; a relative one stays relative, as shown.

    Raises UserError as `local_path` raises ValueError.
    """
    try:
        return Path(_expanded(str(text)))
    except ValueError as error:
        raise UserError(f"{str(text)!r} {error}") from None


def required_name(name: str, what: str = "--name") -> str:
    """The name of a run's folder, as it is. Raises UserError for one outside the storage or that stores reject."""
    found = _BAD_IN_NAMES.search(name)
    if found:
        fix = re.sub(r"-{2,}", "-", _BAD_IN_NAMES.sub("-", name).replace("..", "")).strip("-. ")
        raise UserError(f"{what} {name!r} has {found[0]!r} in it: a name is one folder below --storage; try {fix!r}")
    if not name.strip() or name.startswith(".") or name.endswith((".", " ")) or name != name.strip():
        raise UserError(f"{what} {name!r}: a name begins and ends with neither a dot nor a space; try 'dog-lora'")
    if name.lower() in _RESERVED:
        raise UserError(f"{what} {name!r} is the folder that all runs share: give another name, as {name + '-run'!r}")
    if len(name.encode()) > _LONGEST_NAME:
        raise UserError(f"{what} has {len(name.encode())} bytes, the limit is {_LONGEST_NAME}: shorten it")
    return name
