"""What lies in a source and is not read: one line a kind, with a count and an example; what can be read is read."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sdxl_ray.config.schema import Data, Prior
from sdxl_ray.data.dataset import ImageSet, scan, scan_class, split
from sdxl_ray.data.image_io import BadImage
from sdxl_ray.data.unused_files import unused
from sdxl_ray.errors import UserError
from sdxl_ray.evaluation.subject import load_photos


def photo(path: Path, number: int, kind: str | None = None) -> Path:
    """A small image whose pixels are its number's own."""
    pixels = np.random.default_rng(number).integers(0, 255, (16, 24, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format=kind)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, 0.png to 2.png."""
    for number in range(3):
        photo(tmp_path / "set" / f"{number}.png", number)
    return tmp_path / "set"


def captions(found: ImageSet) -> list[str]:
    return [image.caption for image in found]


def data(images: Path, **settings: Any) -> Data:
    return Data(images=str(images), subject="sks dog", **settings)


def lines(folder: Path, use: Any = "auto", **settings: Any) -> list[str]:
    found = unused(str(folder), "data.images", use, **settings)
    prefix = f"data.images {str(folder)!r}: "
    assert all(line.startswith(prefix) and "\n" not in line for line in found)
    return [line.removeprefix(prefix) for line in found]


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name.replace("__", ".").lstrip("_")).write_text(text)


def test_kohyas_caption_files_are_read_in_any_case(folder: Path) -> None:
    write(folder, _0__caption="zero", _1__TXT="one", _2__txt="two")
    assert captions(scan(data(folder))) == ["zero", "one", "two"]
    assert lines(folder) == []
    (folder / "1.TXT").unlink()
    with pytest.raises(UserError, match=r"'1.png' has no caption"):
        scan(data(folder))


def test_a_caption_file_whose_name_is_composed_otherwise_is_read(tmp_path: Path) -> None:
    photo(tmp_path / "set" / f"{unicodedata.normalize('NFC', 'café')}.png", 0)
    (tmp_path / "set" / f"{unicodedata.normalize('NFD', 'café')}.txt").write_text("a café")
    assert captions(scan(data(tmp_path / "set"))) == ["a café"]
    (tmp_path / "set" / "metadata.jsonl").write_text(
        json.dumps({"file_name": unicodedata.normalize("NFD", "café.png"), "text": "from the table"})
    )
    assert captions(scan(data(tmp_path / "set"))) == ["from the table"]


def test_captions_that_something_else_outranks_are_counted(folder: Path) -> None:
    write(folder, _0__txt="zero", _0__caption="other", _1__txt="one", _2__txt="two")
    assert lines(folder) == ["1 caption file not read (0.caption): the .txt file beside it is"]
    assert lines(folder, "prompt") == [
        "3 caption files not read (0.txt): data.captions=prompt gives every image the prompt"
    ]
    assert lines(folder, "class") == ["3 caption files not read (0.txt): class images all have the class prompt"]
    assert lines(folder, "photos") == []
    rows = [{"file_name": f"{n}.png", "text": f"row {n}", "prompt": f"prompt {n}", "seed": "x"} for n in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert lines(folder) == [
        "3 caption files not read (0.txt): metadata.jsonl has the captions; data.captions=sidecar reads them",
        "3 captions in the key 'prompt' not read (metadata.jsonl line 1: 'prompt 0'): data.caption_column=prompt "
        "reads it",
    ]
    assert captions(scan(data(folder, caption_column="prompt"))) == ["prompt 0", "prompt 1", "prompt 2"]
    assert "metadata.jsonl not read: data.captions=metadata reads it" in lines(folder, "sidecar")
    assert lines(folder, "class")[1:] == ["metadata.jsonl not read: class images all have the class prompt"]


def test_a_prompt_key_is_read_where_there_is_no_other(folder: Path) -> None:
    rows = [{"file_name": f"{n}.png", "prompt": f"prompt {n}"} for n in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert captions(scan(data(folder))) == ["prompt 0", "prompt 1", "prompt 2"]
    assert lines(folder) == []
    with pytest.raises(UserError, match=r"line 1 \('0.png'\) has no caption in 'description'"):
        scan(data(folder, caption_column="description"))


def test_other_caption_tables_and_files_are_named(folder: Path) -> None:
    write(folder, _0__json="{}", captions__csv="0.png,a dog", captions__tsv="", dataset__jsonl="", _9__txt="nobody")
    write(folder, clip__mp4="", photos__zip="", README__txt="about", LICENSE="", _0__npz="", _0__md="")
    assert lines(folder) == [
        "1 caption file without an image (9.txt)",
        "4 files not read (0.json): captions are read from metadata.jsonl, or from .txt or .caption files of the "
        "images' names",
        "2 files not read (clip.mp4): no known image format",
    ]
    assert lines(folder, "photos") == ["2 files not read (clip.mp4): no known image format"]
    assert lines(folder, column="text")[1] == "data.caption_column='text' not used: there is no metadata.jsonl"


def test_litter_of_systems_is_not_worth_a_line(folder: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.jpg", ".hidden.png", "0.png~"):
        (folder / name).write_bytes(b"x")
    for name in ("__MACOSX/._0.png", "@eaDir/0.png", ".ipynb_checkpoints/0.png"):
        photo(folder / name, 5)
    assert lines(folder) == []
    assert len(scan(data(folder))) == len(scan(data(folder, recursive=True))) == 3


@pytest.mark.parametrize(
    "name", ["9.JPG", "9.Jpeg", "9.jfif", "9.JPE", "9.pjpeg", "9.WEBP", "9.TIFF", "9.dib", "9.bmp"]
)
def test_every_spelling_of_a_known_format_is_read(folder: Path, name: str) -> None:
    kind = {"webp": "WEBP", "tiff": "TIFF", "dib": "DIB", "bmp": "BMP"}.get(name.split(".")[1].lower(), "JPEG")
    photo(folder / name, 9, "BMP" if kind == "DIB" else kind)
    assert len(scan(data(folder))) == 4
    assert lines(folder) == []


@pytest.mark.parametrize(
    "name", ["9.avif", "9.HEIC", "9.gif", "9.hif", "9.cr2", "9.cr3", "9.NEF", "9.psd", "9.jxl", "9.tga"]
)
def test_formats_that_cannot_be_read_are_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"not read")
    with pytest.raises(BadImage, match=name):
        scan(data(folder))


def test_images_in_folders_below_are_counted_and_can_be_read(folder: Path) -> None:
    for number, name in enumerate(("a/0.png", "a/1.png", "b/c/0.JPG"), start=10):
        photo(folder / name, number)
    assert lines(folder) == ["3 images in folders below it not read (a/0.png): data.recursive=true reads them"]
    assert lines(folder, recursive=True) == []
    found = scan(data(folder, recursive=True))
    assert [Path(image.source).relative_to(folder).as_posix() for image in found] == [
        "0.png",
        "1.png",
        "2.png",
        "a/0.png",
        "a/1.png",
        "b/c/0.JPG",
    ]
    assert lines(folder, elsewhere=frozenset({(folder / "a").resolve()})) == [
        "1 image in folders below it not read (b/c/0.JPG): data.recursive=true reads them"
    ]
    (photos,) = unused(str(folder), "--subject", "photos")
    assert photos.endswith("not read (a/0.png): give that folder to read them")


def test_a_folder_of_folders_says_where_the_images_are(tmp_path: Path) -> None:
    photo(tmp_path / "set" / "10_sks dog" / "0.png", 0)
    with pytest.raises(UserError, match=r"holds no images: 1 are in folders below it \(10_sks dog/0.png\): data.rec"):
        scan(data(tmp_path / "set"))
    with pytest.raises(UserError, match="give one of those folders"):
        load_photos(str(tmp_path / "set"))
    (line,) = lines(tmp_path / "set", recursive=True)
    assert line.startswith("the folder name '10_sks dog' means nothing here")
    assert captions(scan(data(tmp_path / "set", recursive=True))) == ["a photo of sks dog"]


def test_nested_sets_have_captions_of_their_own_folders(folder: Path) -> None:
    photo(folder / "a" / "0.png", 10)
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"top {number}")
    (folder / "a" / "0.caption").write_text("nested")
    assert captions(scan(data(folder, recursive=True))) == ["top 0", "top 1", "top 2", "nested"]
    rows = [{"file_name": f"{n}.png", "text": f"row {n}"} for n in range(3)]
    table = folder / "metadata.jsonl"
    table.write_text("\n".join(map(json.dumps, [*rows, {"file_name": "a/0.png", "text": "row a"}])))
    assert captions(scan(data(folder, recursive=True))) == ["row 0", "row 1", "row 2", "row a"]
    with pytest.raises(UserError, match=r"line 4 names 'a/0.png', no image of this folder: set data.recursive=true"):
        scan(data(folder))
    table.write_text("\n".join(map(json.dumps, rows)))
    (folder / "a" / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "its own"}))
    assert captions(scan(data(folder, recursive=True))) == ["row 0", "row 1", "row 2", "its own"]
    (folder / "a" / "metadata.jsonl").write_text(json.dumps({"file_name": "1.png", "text": "its own"}))
    with pytest.raises(UserError, match=r"a/metadata.jsonl line 1 names '1.png', no image of this folder"):
        scan(data(folder, recursive=True))


def test_validation_class_images_and_parquet_nest_too(tmp_path: Path, folder: Path) -> None:
    photo(tmp_path / "held" / "x" / "0.png", 20)
    photo(tmp_path / "class" / "x" / "0.png", 30)
    wanted = data(
        folder,
        recursive=True,
        validation=str(tmp_path / "held"),
        class_name="dog",
        prior=Prior(images=str(tmp_path / "class")),
    )
    assert len(split(scan(wanted), wanted)[1]) == len(scan_class(wanted)) == 1
    (tmp_path / "tables" / "x").mkdir(parents=True)
    image = [photo(folder / "0.png", 0).read_bytes()]
    pq.write_table(pa.table({"image": image}), tmp_path / "tables" / "x" / "part.PARQUET")
    found = scan(data(tmp_path / "tables", recursive=True))
    assert found.read(found.images[0]).size == (24, 16)
    assert len(scan(Data(images="subject:penguin", recursive=True, subject="sks penguin"))) == 5
    assert unused("subject:penguin", "data.images", "auto") == []


def test_a_linked_folder_is_not_followed(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    (folder / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert len(scan(data(folder, recursive=True))) == 3


def table(path: Path, **columns: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [photo(path.parent / "0.png", n).read_bytes() for n in range(2)]
    (path.parent / "0.png").unlink()
    pq.write_table(pa.table({"image": images, **columns}), path)
    return path


def test_columns_of_parquet_are_read_or_named(tmp_path: Path) -> None:
    prompts = table(tmp_path / "a.parquet", prompt=["a", "b"], url=["x", "y"])
    assert captions(scan(data(prompts))) == ["a", "b"]
    assert lines(prompts) == []
    several = table(tmp_path / "b.parquet", text=["t", "u"], image_caption=["long one", "c"], url=["x", "y"])
    assert captions(scan(data(several))) == ["t", "u"]
    assert lines(several) == [
        "2 captions in the column 'image_caption' not read (b.parquet: 'long one'): 'text' is; "
        "data.caption_column=image_caption reads it"
    ]
    assert captions(scan(data(several, caption_column="image_caption"))) == ["long one", "c"]
    assert lines(several, "prompt") == [
        "2 captions in the column 'text' not read (b.parquet: 't'): data.captions=prompt gives every image the prompt",
        "2 captions in the column 'image_caption' not read (b.parquet: 'long one'): data.captions=prompt gives every "
        "image the prompt",
    ]
    with pytest.raises(UserError, match=r"b.parquet has no column words, only image, text, image_caption, url"):
        scan(data(several, caption_column="words"))


def test_a_caption_column_of_another_name_is_not_overlooked(tmp_path: Path) -> None:
    unnamed = table(tmp_path / "many" / "c.parquet", description=["a dog", "b"], id=["1", "2"]).parent
    assert lines(unnamed) == [
        "2 captions in the column 'description' not read (c.parquet: 'a dog'): data.caption_column=description reads it"
    ]
    foreign = table(tmp_path / "d.parquet", legende=["ein Hund", "b"])
    (line,) = lines(foreign)
    assert "'legende' not read (d.parquet: 'ein Hund'): data.caption_column=legende" in line
    with pytest.raises(UserError, match=r"data.caption_column=description"):
        scan(Data(images=str(unnamed)))
