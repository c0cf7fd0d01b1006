"""File systems of URLs: pyarrow's own (S3, Google, Azure, HDFS), and fsspec's for everything else.

Their own retries are shortened or switched off: `deadline.patiently` tries again, and its limit is for all of them.
"""

from __future__ import annotations

import difflib
import os
import shutil
import socket
from collections.abc import Collection
from datetime import timedelta
from typing import Any
from urllib.parse import SplitResult, parse_qs, parse_qsl, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from sdxl_ray.errors import RunError, UserError, nearest
from sdxl_ray.io.storage.address import shown
from sdxl_ray.io.storage.deadline import patiently

#: Seconds for a connection and, of S3, without a byte of an answer.
_CONNECT_S, _ANSWER_S = 5, 8
#: Google: seconds in which its library tries again by itself.
_GOOGLE_RETRY_S = 8
_ARROW = ("abfs", "abfss", "hdfs", "viewfs")

#: Where credentials come from, by the start of the scheme.
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role of the machine",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`, or an account of the machine",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`, or an account of the machine",
    "abfs": "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, `az login`, or a managed identity",
}


def open_url(url: str) -> tuple[Any, str]:
    """pyarrow's file system of a URL, through fsspec where pyarrow has none of its own, and the path in it.

    Credentials come from the environment, as do AWS_ENDPOINT_URL and STORAGE_EMULATOR_HOST; the options
    `?endpoint_override=HOST:PORT&scheme=http` say the same for S3 (with `region`) and Google. Raises UserError.
    """
    try:
        return patiently(lambda _: _opened(url), f"storage {shown(url)!r} cannot be opened", url)
    except RunError as error:
        raise UserError(f"{error}; give a path, s3://…, gs://… or abfss://…") from None


def credentials(url: str) -> str:
    """Where the credentials of a store come from, or the empty text where that is not known."""
    scheme = urlsplit(url).scheme
    return next((text for start, text in _CREDENTIALS.items() if scheme.startswith(start)), "")


def _opened(url: str) -> tuple[Any, str]:
    parts = urlsplit(url, allow_fragments=False)
    if parts.scheme == "s3":
        return _s3(parts)
    if parts.scheme in ("gs", "gcs"):
        try:
            kind = pafs.GcsFileSystem
        except ImportError:  # this pyarrow is built without it
            return _fsspec(url)
        return _google(kind, parts)
    if parts.scheme in _ARROW:
        try:
            return _arrow(url, parts)
        except pa.ArrowNotImplementedError:
            pass
    return _fsspec(url)


def _s3(parts: SplitResult) -> tuple[Any, str]:
    options = _options(parts, {"endpoint_override", "scheme", "region"})
    if "@" in parts.netloc:
        raise ValueError("keys come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), not from the URL")
    # Arrow reads it only for URLs that it parses itself.
    address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    files = pafs.S3FileSystem(
        connect_timeout=_CONNECT_S,
        request_timeout=_ANSWER_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=1),
        background_writes=False,  # in the background a file is read into memory whole, and no progress is seen
        **_at(address, options),
    )
    return files, f"{parts.netloc}{parts.path}"


def _google(kind: Any, parts: SplitResult) -> tuple[Any, str]:
    options = _options(parts, {"endpoint_override", "scheme", "project_id"})
    user, _, bucket = parts.netloc.rpartition("@")
    if user not in ("", "anonymous"):
        raise ValueError("credentials come from the environment (GOOGLE_APPLICATION_CREDENTIALS), not from the URL")
    emulator = os.environ.get("STORAGE_EMULATOR_HOST") or os.environ.get("CLOUD_STORAGE_EMULATOR_ENDPOINT")
    if emulator and "://" not in emulator:
        emulator = f"http://{emulator}"
    anonymous = user == "anonymous" or bool(emulator and "endpoint_override" not in options)
    limit = timedelta(seconds=_GOOGLE_RETRY_S)
    return kind(anonymous=anonymous, retry_time_limit=limit, **_at(emulator, options)), f"{bucket}{parts.path}"


def _arrow(url: str, parts: SplitResult) -> tuple[Any, str]:
    """A URL as Arrow reads it: percent-decoded, a fragment is nothing."""
    url = url.replace("#", "%23").replace(" ", "%20")
    azure = parts.scheme.startswith("abfs")
    if azure and "background_writes=" not in parts.query:
        url = f"{url}{'&' if parts.query else '?'}background_writes=false"  # as for S3
    if azure and shutil.which("az") is None:
        # Or Azure's library runs `az` for a token, and the shell's "not found" is what the user sees.
        os.environ.setdefault("AZURE_TOKEN_CREDENTIALS", "prod")
    files, path = pafs.FileSystem.from_uri(url)
    if azure and not path.strip("/"):
        raise ValueError("no container: write abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/runs")
    if azure and not any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")):
        _reach_azure(parts)
    return files, str(path)


def _reach_azure(parts: SplitResult) -> None:
    """Raise OSError where no server answers. Azure's library would retry by itself for longer than the time limit."""
    options = dict(parse_qsl(parts.query))
    address = options.get("blob_storage_authority") or parts.netloc.rpartition("@")[2]
    host, _, port = address.partition(":")
    if not host.strip(".") or "." not in host.strip("."):  # the name of an account or a container
        return
    try:
        plain = options.get("enable_tls") == "false"
        socket.create_connection((host, int(port or (80 if plain else 443))), timeout=_CONNECT_S).close()
    except OSError as error:
        raise OSError(f"{address}: {error.strerror or error}") from None


def _fsspec(url: str) -> tuple[Any, str]:
    import fsspec

    scheme = url.partition("://")[0].rpartition("::")[2]
    if scheme not in (known := {*fsspec.available_protocols(), *fsspec.registry}):
        close = difflib.get_close_matches(scheme, known, n=1, cutoff=0.5)
        raise ValueError(f"no kind of store {scheme!r}{f': did you mean {close[0]!r}?' if close else ''}")
    handler, path = fsspec.core.url_to_fs(url)
    return pafs.PyFileSystem(_Files(handler)), str(path)


class _Files(pafs.FSSpecHandler):  # type: ignore[misc]  # pyarrow has no types
    """Lists what is there or raises. pyarrow's own takes every error for "not found": a dead store would be empty."""

    def get_file_info_selector(self, selector: Any) -> list[Any]:
        base = selector.base_dir
        try:
            if self.fs.info(base)["type"] != "directory":
                raise NotADirectoryError(base)
        except FileNotFoundError:
            if selector.allow_not_found:
                return []
            raise
        depth = None if selector.recursive else 1
        found = self.fs.walk(base, maxdepth=depth, detail=True, on_error="raise")
        infos = [info for _, folders, files in found for info in (*folders.values(), *files.values())]
        return [self._create_file_info(info["name"], info) for info in infos]


def _options(parts: SplitResult, known: Collection[str]) -> dict[str, str]:
    options = {name: values[-1] for name, values in parse_qs(parts.query, strict_parsing=bool(parts.query)).items()}
    if unknown := options.keys() - known:
        raise ValueError(f"no option {min(unknown)!r}: {nearest(min(unknown), known)}")
    if not parts.netloc.rpartition("@")[2]:
        raise ValueError("no bucket")
    return options


def _at(address: str | None, options: dict[str, str]) -> dict[str, str]:
    """Options with the environment's address, unless the URL has one."""
    if not address or "endpoint_override" in options:
        return options
    return options | {"scheme": urlsplit(address).scheme, "endpoint_override": urlsplit(address).netloc}
