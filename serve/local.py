"""An endpoint on this machine for as long as a `with` block lasts: for the command line, tests, benches and `compare`.

with running(config) as url:  # http://127.0.0.1:8000, or the address that the configuration binds
    requests.post(f"{url}/v1/images/generations", json={"prompt": "a photo of a dog"})
"""

from __future__ import annotations

import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve

from sdxl_ray.distributed.cluster import connected
from sdxl_ray.distributed.worker_paths import require_visible
from sdxl_ray.errors import RunError
from serve import _ray_private
from serve.app import application, listening, require_guarded
from serve.config import ServeConfig
from serve.deployment_config import cpus_of_replica, replica_bounds
from serve.http.auth import key_texts
from serve.http.port import free_port, require_free, require_free_to_start
from serve.replica.placement import Placement, plan

APPLICATION = "sdxl-ray"
_LOG = logging.getLogger("ray.serve")
#: Loading SDXL and compiling it on a GPU takes minutes.
START_S = 1200.0


@contextmanager
def running(
    config: ServeConfig,
    *,
    layout: Placement | None = None,
    timeout_s: float = START_S,
    on_state: Callable[[dict[str, str]], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Iterator[str]:
    """Deploy, wait until every variant that can be served is, and yield the base URL, as this machine reaches it.

    Ray and Serve are used where they run already, and otherwise started; what was started here is taken down. layout:
    default, `plan(config)`. on_state: gets the state of every variant whenever one changes, while it starts. on_note:
    gets a line where Serve runs already, and not where the configuration says.
    Raises UserError: beyond loopback without keys, no base, no variant, the port is taken, no Ray at RAY_ADDRESS.
    RunError: it did not start.
    """
    require_guarded(config)
    require_free_to_start(config.host, config.port)
    layout = layout or plan(config)
    with _ray(config, layout) as ours, _serve(config, ours) as (host, port):
        require_visible(_paths(config))
        require_guarded(config, host)
        if note := _elsewhere(config, host, port):
            (on_note or _LOG.warning)(note)
        deploy(config, layout)
        try:
            url = f"http://{_reached(host)}:{port}"
            _wait(url, key_texts(config.api_keys), timeout_s, on_state or (lambda _: None))
            yield url
        finally:
            if not ours:  # else all of it ends at once, and nobody waits for what is being drawn
                serve.delete(APPLICATION)


def _paths(config: ServeConfig) -> dict[str, str]:
    """What replicas read: setting -> path, of the base and the artifacts that are here."""
    found = {f"base.{name}": path for name, path in config.base.local_paths.items()}
    artifacts = {f"variants.{name}": v.artifact for name, v in config.variants.items() if v.artifact is not None}
    return found | {name: path for name, path in artifacts.items() if Path(path).exists()}


def deploy(config: ServeConfig, layout: Placement | None = None) -> None:
    """Put an endpoint, or another version of it, where Serve is running; it returns before it is there.

    Replicas of an earlier version are replaced one by one, and stay when the new ones do not start.
    """
    target = serve.RunTarget(application(config, layout), name=APPLICATION, route_prefix="/")
    serve.run_many([target], wait_for_applications_running=False)


def deployed() -> str:
    """Serve's word for the state of the endpoint: RUNNING, DEPLOYING, DEPLOY_FAILED, or NOT_STARTED."""
    found = serve.status().applications.get(APPLICATION)
    return str(found.status.value) if found is not None else "NOT_STARTED"


@contextmanager
def _ray(config: ServeConfig, layout: Placement) -> Iterator[bool]:
    """A local Ray where there is none; whether it is ours alone."""
    ours = not ray.is_initialized() and not os.environ.get("RAY_ADDRESS")
    deployments = [(group.deployment_config, 1.0) for group in layout.groups.values()]
    deployments += [(config.ingress.deployment_config, 0.0)]
    needed = sum(replica_bounds(one)[0] * cpus_of_replica(one, cpus) for one, cpus in deployments)
    with connected(None, int(needed) + 1):
        yield ours


@contextmanager
def _serve(config: ServeConfig, in_our_ray: bool) -> Iterator[tuple[str, int]]:
    """Serve's HTTP proxy where there is none; the host and port that it listens on."""
    found = listening()
    if found is not None:
        yield found
        return
    port = config.port or free_port(config.host)
    require_free(config.host, port)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(http_options={"host": config.host, "port": port}, proxy_location="HeadOnly")
    try:
        yield config.host, port
    finally:
        if in_our_ray:
            _ray_private.forget_client()
        else:
            serve.shutdown()


def _wait(url: str, keys: list[str], timeout_s: float, on_state: Callable[[dict[str, str]], None]) -> None:
    """Wait until `/ready` answers 200. Calls `on_state` with the state of every variant whenever one changes.

    keys: `/ready` names the variants only to callers with a key. An ingress on a node whose keys differ from these
    names none; then its status alone decides.
    """
    until = time.monotonic() + timeout_s
    seen: dict[str, str] = {}
    while time.monotonic() < until:
        status, answer = _ask(f"{url}/ready", keys)
        states = answer.get("variants", {})
        if states != seen:
            seen = states
            on_state(states)
        if status == 200 and (not states or "ready" in states.values()):
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


def _ask(url: str, keys: list[str]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {keys[0]}"} if keys else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        try:
            return error.code, json.load(error)
        except ValueError:  # Serve's proxy, while no ingress is there
            return error.code, {}
    except OSError:
        return 0, {}


def _elsewhere(config: ServeConfig, host: str, port: int) -> str | None:
    """What to say where Serve runs already, and its proxy is not the configuration's."""
    ignored = [f"host = {config.host}"] if config.host != host else []
    ignored += [f"port = {config.port}"] if config.port not in (0, port) else []
    if not ignored:
        return None
    return f"Ray Serve runs already and listens on {host}:{port}: {' and '.join(ignored)} is not used"


def _reached(host: str) -> str:
    """A bound address as a URL names it, from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host
