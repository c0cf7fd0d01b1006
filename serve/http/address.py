"""The address of this endpoint as its client reaches it, for the links of a response.

What a client sends decides only the links of its own response, which no cache keeps. Each part is checked, so that a
header cannot put anything but a scheme, a host and a path into a link.
"""

from __future__ import annotations

import re

from starlette.requests import Request

#: A name, an IPv4 or a bracketed IPv6 address, and a port.
_HOST = re.compile(r"([A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
_PREFIX = re.compile(r"(/[A-Za-z0-9_.~-]+)*")


def base_url(request: Request, public_url: str | None) -> str:
    """`https://host:port/prefix` without a slash at its end.

    public_url: what the configuration says, which wins. Else the headers of a proxy (X-Forwarded-Proto, -Host and
    -Prefix, or RFC 7239's Forwarded), then the Host header, then the address that the server listens on.
    """
    if public_url is not None:
        return public_url.rstrip("/")
    forwarded = _forwarded(request)
    scheme = next((s for s in (_first(request, "x-forwarded-proto"), forwarded.get("proto")) if _is_http(s)), None)
    hosts = (_first(request, "x-forwarded-host"), forwarded.get("host"), request.headers.get("host"))
    host = next((host for host in hosts if host and _HOST.fullmatch(host)), None) or _listening(request)
    prefix = _first(request, "x-forwarded-prefix").rstrip("/")
    if not _PREFIX.fullmatch(prefix):
        prefix = ""
    root = str(request.scope.get("root_path", "")).rstrip("/")
    return f"{(scheme or request.url.scheme).lower()}://{host}{prefix}{root}"


def _first(request: Request, header: str) -> str:
    """The first value of a list, which the proxy nearest to the client wrote."""
    return request.headers.get(header, "").partition(",")[0].strip()


def _is_http(scheme: str | None) -> bool:
    return (scheme or "").lower() in ("http", "https")


def _forwarded(request: Request) -> dict[str, str]:
    pairs = (part.partition("=") for part in _first(request, "forwarded").split(";"))
    return {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}


def _listening(request: Request) -> str:
    host, port = request.scope.get("server") or ("127.0.0.1", None)
    name = f"[{host}]" if ":" in host else host
    return name if port is None else f"{name}:{port}"
