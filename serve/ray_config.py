"""Files for Ray Serve itself (`serve deploy FILE`) and RayService manifests, checked key by key.

Ray's own schema ignores what it does not know, so a misspelt `max_ongoing_request` would be silently without effect.
Here it is an error with the nearest spelling, and so is an unknown setting in the arguments of `serve.app:build`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sdxl_ray.config.schema_errors import validated
from sdxl_ray.config.text_files import read_text
from sdxl_ray.errors import UserError
from serve.ray_schema import require_known

IMPORT_PATH = "serve.app:build"
_MANIFEST = "RayService"


def is_one(path: str) -> bool:
    """Whether a file is meant for Ray Serve or KubeRay rather than for `sdxl-ray serve`."""
    if not path.endswith((".yaml", ".yml")) or not Path(path).is_file():
        return False
    try:
        return any(
            isinstance(d, dict) and ("applications" in d or d.get("kind") == _MANIFEST) for d in _documents(path)
        )
    except UserError:
        return False  # whoever reads it next says what is wrong


def check(path: str) -> list[str]:
    """Check every Serve configuration in a file; the names of its applications. Raises UserError, one line."""
    names = []
    for document in _documents(path):
        if isinstance(document, dict) and document.get("kind") == _MANIFEST:
            text = document.get("spec", {}).get("serveConfigV2", "")
            names += check_plain(yaml.safe_load(text) or {}, f"{path}: serveConfigV2")
        elif isinstance(document, dict) and "applications" in document:
            names += check_plain(document, path)
    return names


def check_plain(plain: Mapping[str, Any], where: str) -> list[str]:
    """Check one Serve configuration; the names of its applications."""
    from ray.serve.schema import ServeDeploySchema

    from serve.app import read

    require_known(plain, ServeDeploySchema, "", where)
    schema = validated(ServeDeploySchema, plain, where)
    for application in schema.applications:
        if application.import_path == IMPORT_PATH:
            try:
                read(application.args)
            except UserError as error:
                raise UserError(f"{where}: application {application.name!r}: {error}") from None
    return [application.name for application in schema.applications]


def _documents(path: str) -> list[Any]:
    """Documents as their reader has them: Ray Serve and Kubernetes read YAML 1.1, so this does too."""
    text = read_text(Path(path), repr(path))
    try:
        return list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise UserError(f"{path!r} is not YAML: {' '.join(str(error).split())[:200]}") from None
