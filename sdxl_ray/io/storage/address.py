"""Addresses of storages: a path, a `file:` URL, or the URL of a store. Nothing is contacted here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

from sdxl_ray.errors import UserError

#: At least two letters: one is a Windows drive. `::` chains file systems of fsspec.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]+)://")
#: A URL with one slash, or none: taken as a path it would be a folder named `s3:`.
_ALMOST = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]+):/|(s3a?|gs|gcs|abfss?|az|adl|hdfs|webhdfs|sftp|https?):", re.IGNORECASE
)
_FILE = re.compile(r"file:", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
#: Their host is a bucket, a container or an account, and there is no default one.
BUCKETS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci")
#: Options that are no secrets, and the length of what may be one: without a "1", no message could be read.
_OPEN = ("endpoint_override", "scheme", "region", "blob_storage_authority", "dfs_storage_authority")
_SECRET_CHARS = 4


def is_url(where: str | Path) -> bool:
    """Whether a storage is named by a URL."""
    return _URL.match(str(where)) is not None


def shown(url: str | None) -> str:
    """A URL as messages show it: without its options and its user, which may be secrets."""
    if not url:
        return ""
    try:
        parts = urlsplit(url, allow_fragments=False)
    except ValueError:  # no URL at all: its secret part cannot be found
        return f"{url.partition('://')[0]}://…"
    user, _, host = parts.netloc.rpartition("@")
    container = user and parts.scheme.startswith("abfs") and ":" not in user  # Azure's, which is a part of the address
    path = re.sub(r"//[^/]*@", "//", parts.path)  # a URL behind another one: simplecache::s3://…
    scheme = f"{parts.scheme}:" if parts.scheme else ""
    slashes = "//" if url[len(scheme) :].startswith("//") else ""
    return f"{scheme}{slashes}{parts.netloc if container else host}{path}"


def redacted(text: str, url: str) -> str:
    """A message of a library about a URL, without the secrets of the URL."""
    text = text.replace(url, shown(url))
    try:
        parts = urlsplit(url, allow_fragments=False)
    except ValueError:
        return text
    user = parts.netloc.rpartition("@")[0]
    secrets = [value for name, value in parse_qsl(parts.query) if name not in _OPEN]
    secrets += user.split(":")[1:] if parts.scheme.startswith("abfs") else user.split(":")
    for secret in secrets:
        if len(secret) >= _SECRET_CHARS:
            text = text.replace(secret, "…")
    return text


def resolved(where: str | Path) -> Path | str:
    """The absolute path, or the URL with its scheme in lower case, that a storage is named by. Raises UserError."""
    text = str(where)
    if not text or "\0" in text:
        raise UserError(f"storage {text!r} names no folder: give a path, s3://…, gs://… or abfss://…")
    if _FILE.match(text):
        return _path_of_file_url(text)
    if found := _URL.match(text):
        return _checked(found[1].lower() + text[found.end(1) :])
    if os.name != "nt" and _DRIVE.match(text):
        raise UserError(f"storage {text!r} is a path of Windows: give a path of this machine, like ~/runs")
    if found := _ALMOST.match(text):
        scheme, _, rest = text.partition(":")
        fix = f"{scheme.lower()}://{rest.lstrip('/') or 'bucket'}"
        raise UserError(f"storage {text!r} has no '//': write {fix}, or ./{text} for a folder of that name")
    return expanded(text).absolute()


def expanded(text: str) -> Path:
    """A path in which `~` and `~user` at its start are home folders. Raises UserError for a user that is not there."""
    if not text.startswith("~"):  # Path("./~") would be home too
        return Path(text)
    try:
        return Path(text).expanduser()
    except RuntimeError:
        user = text.partition("/")[0]
        raise UserError(f"{text!r}: no home folder for {user!r}; for a folder of that name, write ./{text}") from None


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url, allow_fragments=False)
    except ValueError as error:
        raise UserError(f"storage {shown(url)!r} is no URL: {error}") from None
    if parts.scheme in BUCKETS and not parts.netloc:
        raise UserError(f"storage '{parts.scheme}://' has no bucket: write {parts.scheme}://bucket/runs")
    return url


def _path_of_file_url(text: str) -> Path:
    """Percent-decoded, as RFC 8089 has it; `file:/runs` is `file:///runs`."""
    host, rest = "", text[len("file:") :]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        rest = slash + path
    if host.startswith("~") or rest.startswith("/~"):
        raise UserError(f"storage {text!r}: a URL has no '~': write {host or rest[1:]}{rest if host else ''}")
    if host not in ("", "localhost"):
        raise UserError(f"storage {text!r} names a machine, {host!r}: write file:///{host}{rest}, or a path")
    for sign in "?#":
        if sign in rest:
            raise UserError(f"storage {text!r}: in a URL, write %{ord(sign):X} for {sign!r}, or give a path")
    path_bytes = unquote_to_bytes(rest)
    if not rest.startswith("/") or b"\0" in path_bytes:
        raise UserError(f"storage {text!r} needs a whole path: write file:///path/to/runs, or a path alone")
    return Path(os.fsdecode(path_bytes))
