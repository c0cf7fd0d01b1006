"""Text in the encodings that editors write: with a mark it is read, without one it is named."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from PIL import Image

from sdxl_ray.config.recipe import load
from sdxl_ray.data.image_sources import entries
from sdxl_ray.errors import UserError
from sdxl_ray.evaluation.prompts import load_prompts
from serve.config import ApiKeys
from serve.http.auth import read_keys

MARKED = {
    "UTF-8 with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "UTF-16 LE": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "UTF-16 BE": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "Windows' line ends": lambda text: text.replace("\n", "\r\n").encode(),
}
UNMARKED = {
    "utf-16-le": "UTF-16",
    "utf-16-be": "UTF-16",
    "latin-1": "Latin-1 or Windows-1252",
}


def reads(folder: Path, write: object) -> list[str]:
    """The word that a recipe, a prompt list, a caption, metadata and a key file have, each in that encoding."""
    assert callable(write)
    folder.mkdir()
    (folder / "mine.yaml").write_bytes(write("data:\n  subject: café\n"))
    (folder / "prompts.txt").write_bytes(write("a {subject} café\nthe {subject}\n"))
    (folder / "keys.txt").write_bytes(write(f"{'k' * 32}\n"))
    for name in ("sidecar", "metadata"):
        (folder / name).mkdir()
        Image.new("RGB", (8, 8)).save(folder / name / "00.png")
    (folder / "sidecar" / "00.txt").write_bytes(write("café\n"))
    (folder / "metadata" / "metadata.jsonl").write_bytes(write('{"file_name": "00.png", "text": "café"}\n'))
    assert len(read_keys(ApiKeys(file=str(folder / "keys.txt")))) == 1
    return [
        str(load(str(folder / "mine.yaml")).data.subject),
        load_prompts(str(folder / "prompts.txt")).final[0].removeprefix("a {subject} "),
        *(entries(str(folder / name), "auto", None, "data.images")[0].caption for name in ("sidecar", "metadata")),
    ]


@pytest.mark.parametrize("kind", MARKED)
def test_text_with_a_mark_is_read(tmp_path: Path, kind: str) -> None:
    assert reads(tmp_path / "set", MARKED[kind]) == ["café"] * 4


@pytest.mark.parametrize(("encoding", "named"), UNMARKED.items())
def test_text_without_a_mark_is_named(tmp_path: Path, encoding: str, named: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "00.png")
    for name, text in (("00.txt", "café"), ("metadata.jsonl", '{"file_name": "00.png", "text": "café"}')):
        (folder / name).write_bytes(text.encode(encoding))
        with pytest.raises(UserError, match=rf"^{name} is not UTF-8.* it seems to be {named}.*: save it as UTF-8$"):
            entries(str(folder), "auto", None, "data.images")
        (folder / name).unlink()
    (folder / "mine.yaml").write_bytes("data: {subject: café}".encode(encoding))
    with pytest.raises(UserError, match=rf"it seems to be {named}"):
        load(str(folder / "mine.yaml"))
