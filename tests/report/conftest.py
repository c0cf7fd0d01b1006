"""A synthetic comparison with its report, made once; tests that change it get a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sdxl_ray.report.build import write_report
from tests.report.synthetic import make


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison's folder with its report; tests that change it copy it."""
    home = make(tmp_path_factory.mktemp("runs"))
    write_report(home)
    return home


@pytest.fixture
def home(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written.parent, tmp_path / "runs")
    return tmp_path / "runs" / written.name
