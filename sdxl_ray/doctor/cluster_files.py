"""Files for Ray, checked key by key before they are sent: what a cluster drops without a word is an error here.

    checked("cluster/aws.yaml")            # of Ray's cluster launcher: see `clouds`
    checked("cluster/kuberay-jobs.yaml")   # of KubeRay: see `kuberay`
    checked("cluster/runtime_env.yaml")    # of a job: its runtime environment

Ray Serve's own files are checked by `serve.ray_config`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sdxl_ray.config.text_files import read_text
from sdxl_ray.distributed._ray_private import launcher_config
from sdxl_ray.doctor import clouds, kuberay
from sdxl_ray.doctor.containers import unread
from sdxl_ray.errors import UserError, nearest


@dataclass(frozen=True)
class Held:
    """What a file holds: objects of KubeRay, clusters of the launcher, environments; and what could not be checked."""

    parts: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)


def checked(path: str) -> Held:
    """What a file holds. Raises UserError, one line."""
    from ray.runtime_env import RuntimeEnv

    text = read_text(Path(path), repr(path))
    found = Held()
    for plain in _documents(text, repr(path)):
        if isinstance(plain, dict) and "kind" in plain:
            for one in kuberay.parse(plain, path):
                found.parts.append(f"{one.kind} {one.metadata.name}")
                found.unchecked.extend(f"what is inside {place} of {one.metadata.name}" for place in unread(one))
                _environment_of(one, path)
            found.unchecked.append("values that only the cluster knows: images, secrets, accounts, machines")
        elif isinstance(plain, dict) and "cluster_name" in plain:
            config = launcher(plain, path)
            found.parts.append(f"cluster {config['cluster_name']}")
            found.unchecked.extend(clouds.require_known(config, path))
        elif isinstance(plain, dict) and plain.keys() & RuntimeEnv.known_fields:
            environment(plain, path)
            found.parts.append("runtime environment")
        elif not isinstance(plain, dict) or "applications" not in plain:
            raise UserError(
                f"{path!r} is none of Ray's files: a cluster has cluster_name, an object of KubeRay kind, a "
                "configuration of Serve applications, and a runtime environment env_vars, pip or another of its fields"
            )
    return found


def launcher(plain: dict[str, Any], where: str) -> dict[str, Any]:
    """A cluster as `ray up` reads it. Raises UserError with the first key or value that Ray's schema does not know."""
    import jsonschema

    try:
        config = launcher_config(copy.deepcopy(plain))
    except jsonschema.ValidationError as error:
        at = ".".join(str(key) for key in error.absolute_path)
        if error.validator == "additionalProperties":
            known = error.schema["properties"]
            unknown = str(next(key for key in error.instance if key not in known))
            place = f"{at}.{unknown}" if at else unknown
            raise UserError(f"{where}: no setting {place!r}: {nearest(unknown, known)}") from None
        raise UserError(f"{where}: {at}: {error.message.splitlines()[0]}") from None
    except (ValueError, KeyError, TypeError, AttributeError, NotImplementedError) as error:  # Ray's: an unknown cloud
        raise UserError(f"{where}: {' '.join(str(error).split())[:200]}") from None
    return config


def environment(plain: Any, where: str) -> None:
    """Raise UserError unless this is a runtime environment as Ray reads it; Ray itself lets unknown keys through."""
    from ray.runtime_env import RuntimeEnv, RuntimeEnvConfig

    if not isinstance(plain, dict):
        raise UserError(f"{where}: a runtime environment is a mapping, not a {type(plain).__name__}")
    options = plain.get("config")
    for at, part, known in (
        ("", plain, RuntimeEnv.known_fields),
        ("config.", options if isinstance(options, dict) else {}, RuntimeEnvConfig.known_fields),
    ):
        for key in part:
            if key not in known:
                raise UserError(f"{where}: no setting {f'{at}{key}'!r}: {nearest(str(key), known)}")
    try:
        RuntimeEnv(**plain)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"{where}: {' '.join(str(error).split())[:200]}") from None


def _environment_of(one: Any, path: str) -> None:
    """Check the text in a job of KubeRay that is a runtime environment."""
    if isinstance(one, kuberay.RayJob) and one.spec.runtimeEnvYAML:
        where = f"{path}: runtimeEnvYAML of {one.metadata.name}"
        for plain in _documents(one.spec.runtimeEnvYAML, where):
            environment(plain, where)


def _documents(text: str, where: str) -> list[Any]:
    """Documents as their reader has them: `ray up`, `kubectl` and Ray's jobs read YAML 1.1, so this does too."""
    try:
        return list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not YAML: {' '.join(str(error).split())[:200]}") from None
