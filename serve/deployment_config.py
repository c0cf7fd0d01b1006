"""`deployment_config`: Ray Serve's own settings of a deployment, passed through to it and validated by it.

Ray is imported only where a `deployment_config` has settings to validate.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from sdxl_ray.config.plain_data import merge
from sdxl_ray.errors import UserError
from serve.ray_schema import require_known

DeploymentConfig = dict[str, Any]
#: Limits of `num_replicas: auto`, as Ray documents them.
_AUTO = (1, 100)
#: Settings of version 0.1 before `deployment_config`, and what replaces them.
_RENAMED = {
    "replicas.count": "deployment_config.num_replicas",
    "replicas.cpus": "deployment_config.ray_actor_options.num_cpus",
    "replicas.gpus": "deployment_config.ray_actor_options.num_gpus (without it: one where the cluster has any)",
    "replicas.surge_percent": "deployment_config.max_surge_percent",
    "replicas.start_attempts": "deployment_config.max_constructor_retry_count",
    "ingress.replicas": "ingress.deployment_config.num_replicas",
    "ingress.cpus": "ingress.deployment_config.ray_actor_options.num_cpus",
    "ingress.max_connections": "ingress.deployment_config.max_ongoing_requests",
}


def new_name(path: str) -> str | None:
    """What replaces a setting that was renamed, as the end of an error message; None for any other setting."""
    if path in _RENAMED:
        return f"it is now {_RENAMED[path]}"
    section = [f"{new} (was {old})" for old, new in _RENAMED.items() if old.startswith(f"{path}.")]
    return f"it is now {', '.join(section)}" if path == "replicas" else None


def replica_bounds(config: Mapping[str, Any]) -> tuple[int, int]:
    """Least and greatest number of replicas that a `deployment_config` allows.

    Values of a wrong type count as Ray's defaults; `check` reports them.
    """
    number, scaling = config.get("num_replicas"), config.get("autoscaling_config")
    if number == "auto" or isinstance(scaling, Mapping):
        low, high = _AUTO if number == "auto" else (1, 1)
        scaling = scaling if isinstance(scaling, Mapping) else {}
        low, high = _integer(scaling.get("min_replicas"), low), _integer(scaling.get("max_replicas"), high)
        return low, max(low, high)
    fixed = max(1, _integer(number, 1))
    return fixed, fixed


def cpus_of_replica(config: Mapping[str, Any], default: float) -> float:
    """CPUs that Ray reserves for one replica."""
    given = (config.get("ray_actor_options") or {}).get("num_cpus")
    return default if given is None else float(given)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> DeploymentConfig:
    """`above` over `below`. A fixed number of replicas replaces autoscaling, and the reverse."""
    kept = dict(below)
    if above.get("num_replicas") not in (None, "auto"):
        kept.pop("autoscaling_config", None)
    elif above.get("autoscaling_config") is not None and kept.get("num_replicas") != "auto":
        kept.pop("num_replicas", None)
    result: DeploymentConfig = merge(kept, dict(above))
    return result


def check(config: Mapping[str, Any], path: str, where: str) -> None:
    """Have Ray Serve validate a `deployment_config`.

    path: its dotted path. Raises UserError, one line that begins with `where`: the setting, its value, and what Ray
    says of it, or the nearest name for one that Ray does not have.
    """
    if not config:
        return
    from ray import serve
    from ray.serve.schema import DeploymentSchema

    deployment = serve.deployment(_Anything)
    options = [name for name in inspect.signature(deployment.options).parameters if not name.startswith("_")]
    require_known(config, DeploymentSchema, path, where, set(options) - {"func_or_class", "name", "version"})
    if config.get("user_config") is not None:
        raise UserError(f"{where}: {path}.user_config: these deployments cannot be reconfigured: leave it out")
    try:
        DeploymentSchema.model_validate({"name": "deployment", **config})
        deployment.options(**config)  # also validates what the schema only takes as a mapping
    except ValidationError as error:
        raise UserError(f"{where}: {_first_problem(error, config, path)}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {path}: {' '.join(str(error).split())}") from None


def _first_problem(error: ValidationError, config: Mapping[str, Any], path: str) -> str:
    problem = error.errors()[0]
    here: Any = config
    for part in problem["loc"]:
        if not (isinstance(here, Mapping) and part in here):
            break  # pydantic appends the name of a type where a setting may have several
        path, here = f"{path}.{part}", here[part]
    value = "" if isinstance(here, Mapping) else f" = {here!r}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{path}{value}: {message[0].lower()}{message[1:]}"


class _Anything:
    """Stands for the deployment's class while Ray validates its settings."""


def _integer(value: Any, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default
