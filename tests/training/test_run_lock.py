"""Two processes never work in one folder of a run or search, and one that is gone never keeps anybody out of it."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdxl_ray.config.recipe import Recipe
from sdxl_ray.config.search_space import load_space
from sdxl_ray.distributed.train import launch
from sdxl_ray.errors import UserError
from sdxl_ray.search.search import search
from sdxl_ray.training.run_lock import locked

HOLD = "import pathlib, sys, time\nfrom sdxl_ray.training.run_lock import locked\n"
HOLD += "with locked(pathlib.Path(sys.argv[1])):\n"
HOLD += "    print('mine', flush=True)\n    time.sleep(120)"


def test_a_second_command_is_told_who_works_there(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdxl_ray.training.run_lock._WAIT_S", 0.3)
    command = [sys.executable, "-c", HOLD, str(tmp_path / "dog")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "mine\n"
            said = rf"in use by process {other.pid} on \S+ since \d{{4}}-\d\d-\d\d [\d:+-]+: .*give another --name$"
            with pytest.raises(UserError, match=said):
                launch(recipe, storage=tmp_path, name="dog")
            space = load_space("tiny_lora")
            with pytest.raises(UserError, match=said):
                search(space, space.start({}), storage=tmp_path, name="dog")
            assert not (tmp_path / "dog").exists()
            with locked(tmp_path / "cat"):
                pass
        finally:
            other.kill()
    with locked(tmp_path / "dog"):  # killed: nothing has to be cleaned up
        pass


def test_a_storage_that_cannot_be_made_is_not_the_locks_to_tell(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    went_in = False
    with locked(tmp_path / "file" / "dog"):
        went_in = True
    assert went_in
    assert not (tmp_path / "file").is_dir()


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks, as an NFS mount whose lock service is down."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    monkeypatch.setattr("sdxl_ray.training.run_lock._WAIT_S", 0.3)


@pytest.mark.usefixtures("no_flock")
def test_a_file_system_without_locks_gets_a_marker_file(tmp_path: Path) -> None:
    folder, marker = tmp_path / "dog", tmp_path / ".dog.lock-marker"
    with locked(folder):
        said = rf"in use by process {os.getpid()} on .*delete '{marker}' if that process is gone"
        with pytest.raises(UserError, match=said), locked(folder):
            pass
    assert not marker.exists()


@pytest.mark.usefixtures("no_flock")
def test_a_marker_of_a_dead_process_of_this_host_does_not_block(tmp_path: Path) -> None:
    leave = "import os, sys\nfrom filelock import SoftFileLock\nlock = SoftFileLock(sys.argv[1]).acquire()\nos._exit(0)"
    marker = tmp_path / ".dog.lock-marker"
    subprocess.run([sys.executable, "-c", leave, str(marker)], check=True)
    assert marker.exists()
    with locked(tmp_path / "dog"):
        assert str(os.getpid()) in marker.read_text()
