"""A cluster that a command starts for itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import os, ray
from sdxl_ray.distributed.cluster import connected
with connected(None, 1):
    seen = ray.get(ray.remote(lambda: os.environ["RAY_ADDRESS"]).remote())
    print(seen == ray.get_runtime_context().gcs_address, "RAY_ADDRESS" in os.environ)
"""


@pytest.mark.slow
def test_its_processes_know_its_address_and_the_next_command_does_not() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "False"], done.stderr
