"""A file has its name when it is whole: whoever reads it sees the old one or the new one."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdxl_ray.io.atomic import whole_file, whole_folder, write_bytes, write_text


@pytest.mark.parametrize("shared", [False, True])
def test_a_write_that_fails_leaves_the_old_file_and_no_draft(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "run.json"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), whole_file(path, shared=shared) as draft:
        draft.write_text("half")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("run.json", "old")]


@pytest.mark.parametrize("durable", [False, True])
def test_a_write_replaces_the_file_byte_for_byte(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "bytes"
    for data in (b"first\r\n", "zwölf\n".encode()):
        assert write_bytes(path, data, durable=durable) == path
        assert path.read_bytes() == data
    write_text(path, "zwölf\n", durable=durable)
    assert path.read_bytes() == "zwölf\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_writers_of_a_shared_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    with whole_file(path, shared=True) as mine, whole_file(path, shared=True) as other:
        mine.write_text("mine")
        other.write_text("other")
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_text(path, "old")
    (tmp_path / ".run.json.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "above" / "folder"

    def written(text: str) -> None:
        with whole_folder(final) as draft:
            (draft / "file").write_text(text)
            if text == "bad":
                raise OSError(text)

    with pytest.raises(OSError, match="bad"):
        written("bad")
    assert list(final.parent.iterdir()) == []
    for text in ("one", "two"):
        written(text)
        with pytest.raises(OSError, match="bad"):
            written("bad")
        assert [path.name for path in final.parent.iterdir()] == ["folder"]
        assert (final / "file").read_text() == text
