"""What a node is asked about the storage: it must write there, read it back, and leave nothing."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from sdxl_ray.distributed import nodes
from sdxl_ray.errors import RunError, UserError
from sdxl_ray.io.storage import Storage


def test_a_node_writes_beside_the_marker_and_leaves_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    assert not nodes._sees(str(marker))
    marker.touch()
    assert nodes._sees(str(marker))
    assert list(tmp_path.iterdir()) == [marker]


def test_a_node_writes_to_the_store_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDXL_RAY_SCRATCH", str(tmp_path))
    assert nodes._reaches("memory://probed")
    store = Storage.of("memory://probed")
    assert store.names(store.root) == {}
    assert list(store.root.iterdir()) == []


def test_a_store_that_cannot_be_written_is_not_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be listed: that was not enough."""
    monkeypatch.setenv("SDXL_RAY_SCRATCH", str(tmp_path))
    monkeypatch.setattr("sdxl_ray.io.storage.deadline._TRIES", 1)
    with zipfile.ZipFile(tmp_path / "store.zip", "w") as archive:
        archive.writestr("there", "1")
    url = f"zip://::file://{tmp_path}/store.zip"
    assert Storage.of(url).names(Storage.of(url).root)
    with pytest.raises(RunError, match="cannot be written"):
        nodes._reaches(url)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"storage '.*file/runs' cannot be written: .*; give another --storage") as said:
        nodes.unseen(Storage.of(tmp_path / "file" / "runs"), [])
    assert "\n" not in str(said.value)
