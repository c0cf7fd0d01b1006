"""What a wheel holds: every package but the one that trains the embedded base."""

from __future__ import annotations

import tomllib
from pathlib import Path

from setuptools import find_packages

ROOT = Path(__file__).parents[1]


def test_a_wheel_holds_no_builder() -> None:
    find = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    packages = find_packages(str(ROOT), **find)
    assert {"sdxl_ray.tiny", "sdxl_ray.training", "serve.http"} <= set(packages)
    assert not [package for package in packages if "_build" in package]
    everything = find_packages(str(ROOT), include=find["include"])
    assert {package for package in everything if package not in packages} == {
        "sdxl_ray.tiny._build",
        "sdxl_ray.tiny._build.card",
    }


def test_a_wheel_holds_every_config_and_tokenizer_of_sdxl() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["sdxl_ray"]
    package = ROOT / "sdxl_ray"
    shipped = {file for pattern in patterns for file in package.glob(pattern)}
    files = {file for file in (package / "sdxl_base").rglob("*") if file.is_file()}
    assert package / "sdxl_base/tokenizer_2/merges.txt" in files
    assert files <= shipped
