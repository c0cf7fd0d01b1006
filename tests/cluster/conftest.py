"""One real cluster of two nodes for the tests of this folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nodes import Cluster, cluster


@pytest.fixture(scope="session")
def two_nodes() -> Iterator[Cluster]:
    """A head and a worker of one CPU each, with token authentication and the dashboard on loopback."""
    temp = Path(tempfile.mkdtemp(prefix="sr"))
    try:
        with cluster(temp) as running:
            running.add()
            yield running
    finally:
        shutil.rmtree(temp, ignore_errors=True)
