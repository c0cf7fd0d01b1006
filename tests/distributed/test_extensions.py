"""A lock that a killed compiler left is removed, one that a living process holds is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdxl_ray.distributed.extensions import prepare_extensions

#: Holds the lock as torch's builder does, and says so.
_HOLDER = (
    "import sys; from torch.utils.file_baton import FileBaton; "
    "FileBaton(sys.argv[1]).try_acquire(); print('held', flush=True); sys.stdin.read()"
)


def test_only_the_lock_of_a_killed_process_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "op").mkdir()
    lock = tmp_path / "op" / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        prepare_extensions()
        assert lock.is_file()
        holder.kill()
    assert lock.is_file()
    prepare_extensions()
    assert not lock.exists()


def test_each_host_and_torch_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    prepare_extensions()
    assert os.uname().nodename in Path(os.environ["TORCH_EXTENSIONS_DIR"]).name
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
