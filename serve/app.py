"""The Ray Serve application of a configuration.

serve run serve.app:build config=serve/compare.yaml limits.n=4
A RayService or `serve deploy` file: import_path serve.app:build, args {config: serve/compare.yaml}, or the settings
themselves as args.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ray import serve

from sdxl_ray.errors import UserError
from serve import _ray_private
from serve.config import LOOPBACK, ServeConfig, load, override, parse
from serve.deployment_config import merged, replica_bounds
from serve.http.auth import read_keys
from serve.http.image_links import ImageLinkReplica
from serve.http.ingress import Ingress
from serve.replica.placement import Placement, ReplicaGroup, plan
from serve.replica.replica import ModelReplica

#: Calls besides images that a replica answers at once: questions for its state.
_QUESTIONS = 8
#: What Serve's proxy sends where an ingress holds `max_ongoing_requests` open, in seconds.
_BACK_S = 2


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application: from `{"config": FILE, "a.b": value, ...}` or from the settings themselves.

    Raises UserError also where Serve's proxies, whose address the configuration does not decide here, are reachable
    from other machines and there are no API keys.
    """
    config = read(args)
    found = listening()
    require_guarded(config, found[0] if found else None)
    return application(config)


def read(args: Mapping[str, Any]) -> ServeConfig:
    """The configuration that a builder's arguments mean. Raises UserError."""
    plain = dict(args)
    file = plain.pop("config", None)
    if file is None and not any("." in key for key in plain):
        return parse(plain, "serve.app:build")
    return override(load(str(file)) if file else ServeConfig(), plain)


def require_guarded(config: ServeConfig, bound: str | None = None) -> None:
    """Raise UserError where anybody on the network could draw, or where the keys cannot be read.

    bound: the address that Serve's proxy listens on already; then the configuration's host decides nothing.
    """
    keys = read_keys(config.api_keys)
    host = bound or config.host
    if host not in LOOPBACK and not config.allow_open and not len(keys):
        where = f"Ray Serve runs already on {bound}, which" if bound else f"host = {host!r}"
        other = "take that Serve down" if bound else "use host 127.0.0.1"
        raise UserError(
            f"{where} is reachable from other machines and there are no API keys: set {config.api_keys.variable} or "
            f"api_keys.file, {other}, or say allow_open=true"
        )
    if "*" in config.cors_origins and not config.allow_open and not len(keys):
        raise UserError(
            "cors_origins = ['*'] lets every web site that a browser here visits use this endpoint, and there are no "
            f"API keys: name the origins, set {config.api_keys.variable} or api_keys.file, or say allow_open=true"
        )


def application(config: ServeConfig, layout: Placement | None = None) -> serve.Application:
    """An ingress in front of one deployment for each set of weights.

    layout: default, `plan(config)`. Raises UserError: the base is not there, no variant can be served, or bad keys.
    """
    layout = layout or plan(config)
    keys = read_keys(config.api_keys)
    if not layout.groups:
        reasons = "; ".join(f"{name}: {place.reason}" for name, place in layout.places.items())
        raise UserError(f"no variant can be served: {reasons}")
    plain = config.model_dump(mode="json")
    groups = {
        name: _weights(config, group).options(name=name).bind(name, plain, asdict(group))
        for name, group in layout.groups.items()
    }
    return _ingress(config).bind(plain, layout.plain(), groups, _images(config), locked=len(keys) > 0)


def _images(config: ServeConfig) -> serve.Application | None:
    """The store of the images that responses link to. One replica, so that every ingress finds every image."""
    keep_s = config.images.keep_seconds
    if not keep_s:
        return None
    deployment = serve.deployment(ImageLinkReplica).options(
        name="images",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_ingress_options(config)["max_ongoing_requests"],
        graceful_shutdown_wait_loop_s=0.5,
    )
    return deployment.bind(keep_s, config.images.memory_mib * 2**20)


def _weights(config: ServeConfig, group: ReplicaGroup) -> Any:
    """The deployment of one set of weights: our defaults, and what its `deployment_config` says instead."""
    queue, given = config.queue, group.deployment_config
    # An ingress admits no more than this for all replicas together; when one is gone, the others' callers wait here.
    most = queue.images * replica_bounds(given)[1] + replica_bounds(config.ingress.deployment_config)[1] + _QUESTIONS
    defaults = {
        "ray_actor_options": {"num_cpus": 1.0, "num_gpus": _gpus()},
        "max_ongoing_requests": queue.images + _QUESTIONS,
        "max_queued_requests": most,
        "max_constructor_retry_count": 3,
        # An update lets a replica finish what it has; nothing takes longer than its deadline.
        "graceful_shutdown_timeout_s": queue.timeout_s + 5,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": 2,  # three failures running replace a replica; until then it only turns work away
        "health_check_timeout_s": 30,
    }
    return serve.deployment(ModelReplica).options(**merged(defaults, given))


def _ingress(config: ServeConfig) -> Any:
    return serve.deployment(serve.ingress()(Ingress)).options(name="ingress", **_ingress_options(config))


def _ingress_options(config: ServeConfig) -> dict[str, Any]:
    given = config.ingress.deployment_config
    wide = given.get("max_ongoing_requests", 1000)
    defaults = {
        "ray_actor_options": {"num_cpus": 0.0},
        "max_ongoing_requests": wide,
        "max_queued_requests": wide,
        "max_surge_percent": 100,  # it weighs little, so a new one is there before an old one goes
        "backpressure_config": {"status_code": 503, "retry_after_s": _BACK_S},
        "graceful_shutdown_timeout_s": config.queue.timeout_s + 10,
        "graceful_shutdown_wait_loop_s": 0.5,
    }
    return merged(defaults, given)


def _gpus() -> float:
    """GPUs of a replica unless `ray_actor_options.num_gpus` says: one where the cluster has any."""
    import ray

    return 1.0 if ray.is_initialized() and ray.cluster_resources().get("GPU", 0) else 0.0


def listening() -> tuple[str, int] | None:
    """Host and port that Serve's proxies listen on, if it runs already."""
    import ray

    return _ray_private.proxy_address() if ray.is_initialized() else None
