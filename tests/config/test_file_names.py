"""Names as other systems write them find their file, or the one that was meant is named."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from sdxl_ray.data.image_sources import entries
from sdxl_ray.errors import UserError

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def photos(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def captions(folder: Path, *names: str) -> list[str]:
    rows = [json.dumps({"file_name": name, "text": f"caption {number}"}) for number, name in enumerate(names)]
    (folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return [entry.caption for entry in entries(str(folder), "auto", None, "data.images")]


@pytest.mark.parametrize(("on_disk", "written"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_accents_are_the_same_composed_or_not(tmp_path: Path, on_disk: str, written: str) -> None:
    folder = photos(tmp_path / on_disk, f"{on_disk}.png")
    assert captions(folder, f"{written}.png") == ["caption 0"]
    assert len(entries(str(tmp_path / written), "prompt", "a dog", "data.images")) == 1


def test_a_name_from_another_system_is_found(tmp_path: Path) -> None:
    assert captions(photos(tmp_path / "set", "00.png"), "./00.png") == ["caption 0"]
    assert captions(tmp_path / "set", ".\\00.png") == ["caption 0"]


@pytest.mark.parametrize("written", ["DOG.PNG", "dog.PNG", "dgo.png"])
def test_a_name_that_differs_by_case_or_a_letter_is_named(tmp_path: Path, written: str) -> None:
    folder = photos(tmp_path / "set", "dog.png", "cat.png")
    with pytest.raises(UserError, match=rf"names '{written}', no image of this folder: did you mean 'dog\.png'\?"):
        captions(folder, written)


@pytest.mark.parametrize("written", ["Photos/Dog", "photos/dgo", "phtos/dog"])
def test_a_folder_that_is_not_there_has_a_near_one(tmp_path: Path, written: str) -> None:
    (tmp_path / "photos" / "dog").mkdir(parents=True)
    with pytest.raises(UserError, match=r"does not exist: give .*; did you mean '.*photos(/dog)?'\?") as refused:
        entries(str(tmp_path / written), "auto", None, "data.images")
    assert "\n" not in str(refused.value)
