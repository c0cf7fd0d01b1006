"""What every test needs: one thread a process, no network, and the command line, in a child process or in this one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from tests.bucket import CREDENTIALS

# Before torch is imported: two pools of threads on two cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's workers are nice by default: beside another test that computes, one that trains would hardly move.
os.environ.setdefault("RAY_worker_niceness", "0")
# Nobody takes this machine away: as in a cluster that a command starts, no process looks out for it.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
# A test that reaches for the hub should fail here as it would on a machine without a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Fixtures of a run and of a subject, used in several folders.
pytest_plugins = ["tests.run_fixtures", "tests.subject_fixtures"]

#: `here(*words)` -> exit code, stdout, stderr.
Here = Callable[..., tuple[object, str, str]]
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Exhaustive tests are slow too. Where two processes share the tests, files that take long come first, or one
    process would wait for the other at the end."""
    for item in items:
        if item.get_closest_marker("exhaustive"):
            item.add_marker("slow")
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: (item.get_closest_marker("shares") is None, item.path not in slow))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """As `--dist loadfile`, but files that share a fixture of a minute or more (`shares`) go to one process.

    xdist's own `loadgroup` does nothing under pytest 9.2, whose node ids cannot be changed. The scheduler knows only
    the names of tests, so the mark is read from the file.
    """

    class ByFixture(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _shared_fixture(config.rootpath / nodeid.partition("::")[0]) or super()._split_scope(nodeid)

    return ByFixture(config, log) if config.getvalue("dist") == "loadfile" else None


@cache
def _shared_fixture(file: Path) -> str | None:
    found = re.search(r'pytest\.mark\.shares\("(\w+)"\)', file.read_text(encoding="utf-8"))
    return found[1] if found else None


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The folder of the embedded base as it is shipped; tests that change files copy it."""
    from sdxl_ray.tiny import shipped

    return shipped.folder()


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """`cli("plan", "lora")` runs the command in a process of its own, in an empty folder."""

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sdxl_ray", *words],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "120", **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """`here("plan", "lora")` runs the command in this process, in the empty folder that `cli` uses too: quicker."""
    from sdxl_ray.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")

    def run(*words: str) -> tuple[object, str, str]:
        monkeypatch.setattr("sys.argv", ["sdxl-ray", *words])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """The one Ray of the session, four half-time CPUs: two workers, and room for what Ray Data runs beside them.

    Serve runs in it too: a process can be connected to one Ray only. Its workers know the key of `tests.bucket`.
    """
    import ray

    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
