"""Where something was measured, for the cards that reports read."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata

from sdxl_ray import __version__
from sdxl_ray.report.source import Environment

_PACKAGES = ("torch", "diffusers", "transformers", "peft", "ray", "deepspeed", "accelerate")


def environment(*more: str) -> Environment:
    """This machine, now: versions of the packages that decide results (and of `more`), cores, date."""
    versions = {package: metadata.version(package) for package in (*_PACKAGES, *more)}
    return Environment(
        versions={"python": platform.python_version(), "sdxl_ray": __version__, **versions},
        hardware=f"{os.cpu_count()} CPU cores, {platform.machine()}",
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
