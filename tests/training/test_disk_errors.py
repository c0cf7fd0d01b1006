"""A disk without room is one line; any other error stays what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdxl_ray.errors import RunError
from sdxl_ray.training.disk_errors import named_when_full
from tests.disks import small_disk


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    said = r"run folder '.*disk' cannot be written: No space left on device; earlier checkpoints are intact: make room"
    with small_disk(tmp_path / "disk", 1) as disk, pytest.raises(RunError, match=said), named_when_full(disk):
        (disk / "a").write_bytes(bytes(2**21))


def test_another_error_is_not_explained_away(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), named_when_full(tmp_path):
        (tmp_path / "nowhere" / "a").write_bytes(b"")
