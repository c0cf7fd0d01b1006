"""An endpoint on this machine for as long as a `with` block lasts: for the command line, tests, benches and `compare`.

with running(config) as url:
    requests.post(f"{url}/v1/images/generations", json={"prompt": "a photo of a dog"})
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve

from sdxl_ray.errors import RunError, UserError
from serve.app import application, require_guarded
from serve.config import LOOPBACK, ServeConfig
from serve.layout import Layout, plan

APPLICATION = "sdxl-ray"
#: Loading SDXL and compiling it on a GPU takes minutes.
START_S = 1200.0


@contextmanager
def running(
    config: ServeConfig,
    *,
    layout: Layout | None = None,
    timeout_s: float = START_S,
    on_state: Callable[[dict[str, str]], None] | None = None,
) -> Iterator[str]:
    """Deploy, wait until every variant that can be served is, and yield the base URL (`http://127.0.0.1:PORT`).

    Ray and Serve are used where they run already, and otherwise started; what was started here is taken down. layout:
    default, `plan(config)`. on_state: gets the state of every variant whenever one changes, while it starts.
    Raises UserError: beyond loopback without keys, no base, no variant, the port is taken. RunError: it did not start.
    """
    require_guarded(config)
    layout = layout or plan(config)
    with _ray(config, layout) as ours, _serve(config, ours) as port:
        deploy(config, layout)
        try:
            url = f"http://{config.host if config.host in LOOPBACK[:2] else '127.0.0.1'}:{port}"
            _wait(url, timeout_s, on_state or (lambda _: None))
            yield url
        finally:
            if not ours:  # else all of it ends at once, and nobody waits for what is being drawn
                serve.delete(APPLICATION)


def deploy(config: ServeConfig, layout: Layout | None = None) -> None:
    """Put an endpoint, or another version of it, where Serve is running; it returns before it is there.

    Replicas of an earlier version are replaced one by one, and stay when the new ones do not start.
    """
    serve._run(application(config, layout), name=APPLICATION, route_prefix="/", _blocking=False)


def deployed() -> str:
    """Serve's word for the state of the endpoint: RUNNING, DEPLOYING, DEPLOY_FAILED, or NOT_STARTED."""
    found = serve.status().applications.get(APPLICATION)
    return str(found.status.value) if found is not None else "NOT_STARTED"


@contextmanager
def _ray(config: ServeConfig, layout: Layout) -> Iterator[bool]:
    """A local Ray where there is none; whether it is ours alone."""
    if ray.is_initialized():
        yield False
        return
    needed = config.replicas.count * len(layout.groups) * config.replicas.cpus
    needed += config.ingress.replicas * config.ingress.cpus
    address = os.environ.get("RAY_ADDRESS")
    how: dict[str, Any] = {"address": address} if address else {"num_cpus": max(int(needed) + 1, os.cpu_count() or 1)}
    if not address:
        how["include_dashboard"] = False
    ray.init(**how, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield not address
    finally:
        ray.shutdown()


@contextmanager
def _serve(config: ServeConfig, in_our_ray: bool) -> Iterator[int]:
    """Serve's HTTP proxy where there is none; its port."""
    from ray.serve.context import _get_global_client, _set_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is not None:
        yield int(client.http_config.port)
        return
    port = config.port or _free_port()
    _require_free(config.host, port)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(http_options={"host": config.host, "port": port}, proxy_location="HeadOnly")
    try:
        yield port
    finally:
        if in_our_ray:
            _set_global_client(None)  # it ends with its Ray, and a later one is another
        else:
            serve.shutdown()


def _wait(url: str, timeout_s: float, on_state: Callable[[dict[str, str]], None]) -> None:
    """Until `/ready` says so; `on_state` hears of changes."""
    until = time.monotonic() + timeout_s
    seen: dict[str, str] = {}
    while time.monotonic() < until:
        status, answer = _ask(f"{url}/ready")
        states = answer.get("variants", {})
        if states != seen:
            seen = states
            on_state(states)
        if status == 200 and "ready" in states.values():
            return
        if status == 200 or (deployed() == "DEPLOY_FAILED" and "starting" not in states.values()):
            break
        time.sleep(0.2)
    raise RunError(f"the endpoint did not start: {_why()}")


def _why() -> str:
    """What Serve says of the deployments that are not healthy, in one line."""
    found = serve.status().applications.get(APPLICATION)
    if found is None:
        return "Serve has no such application"
    messages = [f"{name}: {d.message}" for name, d in found.deployments.items() if d.status != "HEALTHY"]
    return " ".join("; ".join(messages or [found.message]).split())[-800:]


def _ask(url: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        try:
            return error.code, json.load(error)
        except ValueError:  # Serve's proxy, while no ingress is there
            return error.code, {}
    except OSError:
        return 0, {}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _require_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"port = {port} on {host}: {error.strerror}; choose another, or 0 for any") from None
