"""The address that an endpoint is to listen on, tried before anything is started."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sdxl_ray.errors import UserError


def require_free(host: str, port: int) -> None:
    """Raise UserError when nothing can listen there; port 0 is any free one."""
    with _bound(host, port):
        pass


def require_free_to_start(host: str, port: int) -> None:
    """`require_free`, unless Ray is there already: Serve may run in it, and then its own port counts."""
    ray = sys.modules.get("ray")  # not imported for this, since that takes seconds
    if not os.environ.get("RAY_ADDRESS") and (ray is None or not ray.is_initialized()):
        require_free(host, port)


def free_port(host: str) -> int:
    """A port that is free now. Raises UserError when the host is not an address of this machine."""
    with _bound(host, 0) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket there, as Serve's proxy opens it."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"port = {port} on {host}: {error.strerror}; {_fix(host, error)}") from None
        yield probe


def _fix(host: str, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "end the program that holds it, or choose another port (--port, setting port), or 0 for any free one"
        case errno.EACCES:
            return "choose a port from 1024 up (--port, setting port)"
        case _:
            return f"host must be an address of this machine, such as 127.0.0.1 or 0.0.0.0, not {host!r}"
