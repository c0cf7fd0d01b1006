"""Every use of Ray Serve's private API in this package. A test fails when Ray's version is not one that was checked.

Serve has no public call for the address of its HTTP proxies, nor for forgetting a client whose Ray has ended.
"""

from __future__ import annotations

from ray.serve.context import _get_global_client, _set_global_client

#: Minor versions of Ray with which both uses were checked.
CHECKED = ("2.60",)


def proxy_address() -> tuple[str, int] | None:
    """Host and port on which Serve's proxies listen; None where Serve does not run. Ray must be initialized."""
    client = _get_global_client(raise_if_no_controller_running=False)
    return (str(client.http_config.host), int(client.http_config.port)) if client is not None else None


def forget_client() -> None:
    """Drop this process's client of a Serve that ends with its Ray, so that a later Serve gets a new one."""
    _set_global_client(None)
