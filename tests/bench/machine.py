"""What a table was measured on: processor, cores, memory, versions, date."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from sdxl_ray.display.units import bytes_text

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "ray", "deepspeed")


def machine() -> dict[str, str]:
    """Processor, memory, versions and date, as words."""
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {bytes_text(psutil.virtual_memory().total)}",
        "versions": ", ".join([f"Python {platform.python_version()}", *map(_version, PACKAGES)]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"
