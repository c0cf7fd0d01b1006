"""One real cluster of two nodes for the tests of this folder."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nodes import Cluster, cluster

#: Enters a view of the disk in which the folder named first is another, empty one.
APART = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"')


@pytest.fixture(scope="session")
def two_nodes() -> Iterator[Cluster]:
    """A head and a worker of one CPU each, with token authentication and the dashboard on loopback.

    They share every folder but `temp / "apart"`, where such a view can be made (see `apart`).
    """
    temp = Path(tempfile.mkdtemp(prefix="sr"))
    (temp / "apart").mkdir()
    view = [*APART, str(temp / "apart")]
    able = subprocess.run([*view, "true"], capture_output=True, check=False).returncode == 0
    try:
        with cluster(temp) as running:
            running.add(prefix=view if able else ())
            yield running
    finally:
        shutil.rmtree(temp, ignore_errors=True)


@pytest.fixture
def apart(two_nodes: Cluster) -> Path:
    """A folder that is another one on each node."""
    folder = two_nodes.temp / "apart"
    if subprocess.run([*APART, str(folder), "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no mount namespace can be made here")
    return folder
