"""The files of `cluster/` as text and plain data, for the tests that hold them to their readers' schemas."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from sdxl_ray.doctor import kuberay

FOLDER = Path(__file__).parents[2] / "cluster"
CLOUDS = ("aws", "gcp", "azure")
KUBERAY = {"kuberay-cluster": 1, "kuberay-jobs": 3, "kuberay-network": 1, "kuberay-service": 1}
OTHERS = ("runtime_env", "serve")


def text(name: str) -> str:
    """A file of the folder."""
    return (FOLDER / f"{name}.yaml").read_text()


def plain(name: str) -> Any:
    """The same as plain data."""
    return yaml.safe_load(text(name))


def objects() -> list[Any]:
    """Every Kubernetes object of the folder."""
    return [found for name in KUBERAY for found in kuberay.parse(plain(name), name)]


def unshared(value: Any) -> Any:
    """A copy in which what YAML's anchors share is apart."""
    if isinstance(value, dict):
        return {key: unshared(inner) for key, inner in value.items()}
    return [unshared(inner) for inner in value] if isinstance(value, list) else value


def version_of_image(image: str) -> str:
    """`2.60.0` of `rayproject/ray:2.60.0-py311-gpu`."""
    found = re.fullmatch(r"rayproject/ray:(\d+\.\d+\.\d+)-py311-gpu", image)
    assert found, image
    return found[1]


def torch_range() -> str:
    """The range of torch that the project itself names."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    return next(str(one) for one in project["dependencies"] if one.startswith("torch>"))
