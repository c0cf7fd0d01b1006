"""Files for Ray's launcher and KubeRay, checked key by key before they are sent: what a cluster drops is an error here.

    checked("cluster/aws.yaml")            # of Ray's cluster launcher
    checked("cluster/kuberay-jobs.yaml")   # of KubeRay: see `kuberay`

Ray Serve's own files are checked by `serve.rayfile`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from sdxl_ray.distributed import kuberay
from sdxl_ray.errors import UserError, nearest


def checked(path: str) -> list[str]:
    """What a file holds: objects of KubeRay, or a cluster of the launcher. Raises UserError, one line."""
    try:
        documents = list(yaml.safe_load_all(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path!r} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path!r} is not YAML: {' '.join(str(error).split())[:200]}") from None
    found: list[str] = []
    for plain in documents:
        if isinstance(plain, dict) and "kind" in plain:
            found += [f"{one.kind} {one.metadata.name}" for one in kuberay.parse(plain, path)]
        elif isinstance(plain, dict) and "cluster_name" in plain:
            found.append(f"cluster {launcher(plain, path)['cluster_name']}")
        elif not isinstance(plain, dict) or "applications" not in plain:
            raise UserError(
                f"{path!r} is none of Ray's files: a cluster has cluster_name, an object of KubeRay kind, and a "
                "configuration of Serve applications"
            )
    return found


def launcher(plain: dict[str, Any], where: str) -> dict[str, Any]:
    """A cluster as `ray up` reads it. Raises UserError with the first key or value that Ray's schema does not know."""
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        config: dict[str, Any] = prepare_config(copy.deepcopy(plain))
        validate_config(config)
    except jsonschema.ValidationError as error:
        at = ".".join(str(key) for key in error.absolute_path)
        if error.validator == "additionalProperties":
            known = error.schema["properties"]
            unknown = str(next(key for key in error.instance if key not in known))
            place = f"{at}.{unknown}" if at else unknown
            raise UserError(f"{where}: no setting {place!r}: {nearest(unknown, known)}") from None
        raise UserError(f"{where}: {at}: {error.message.splitlines()[0]}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: {' '.join(str(error).split())[:200]}") from None
    return config
