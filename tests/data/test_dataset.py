"""Folders, captions, Parquet and the held-out split; what is wrong with them is one line that names it."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sdxl_ray.config.schema import Data, Prior
from sdxl_ray.data import dataset, image_sources, parquet_images
from sdxl_ray.data.dataset import ImageSet, class_folder, image_row, scan, scan_class, split
from sdxl_ray.data.image_io import BadImage
from sdxl_ray.data.image_sources import Reader, entries
from sdxl_ray.errors import UserError
from tests.cases import cases

pytestmark = pytest.mark.chaos

PHOTOS = Path(__file__).parents[3] / "shared" / "dreambooth"


def photo(path: Path, number: int, size: tuple[int, int] = (24, 16)) -> Path:
    """A small image whose pixels are its number's own."""
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        photo(tmp_path / "set" / f"{number}.png", number)
    return tmp_path / "set"


def data(images: Path | str, **settings: Any) -> Data:
    return Data(images=str(images), **{"subject": "sks dog", **settings})


def metadata(folder: Path, *rows: object) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")


def captions(found: ImageSet) -> list[str]:
    return [image.caption for image in found]


def test_a_folder_is_its_images_by_name(folder: Path) -> None:
    for name in (".hidden.png", "LICENSE", "notes.md", "sub/deep.png"):
        photo(folder / "sub" / "deep.png", 9) if "/" in name else (folder / name).write_text("x")
    found = scan(data(folder))
    assert [Path(image.source).name for image in found] == ["0.png", "1.png", "2.png", "3.png"]
    assert set(captions(found)) == {"a photo of sks dog"}
    first = found.images[0]
    assert (first.width, first.height, first.role, len(first.key)) == (24, 16, "instance", 64)
    assert found.read(first).tobytes() == Image.open(folder / "0.png").tobytes()


def test_captions_auto_prefers_metadata_then_sidecars(folder: Path) -> None:
    for number in range(4):
        (folder / f"{number}.txt").write_text(f" side {number}\n")
    assert captions(scan(data(folder))) == [f"side {n}" for n in range(4)]
    rows = [{"file_name": f"{n}.png", ("text" if n % 2 else "caption"): f"row {n}"} for n in range(4)]
    metadata(folder, *rows, "")
    assert captions(scan(data(folder))) == [f"row {n}" for n in range(4)]
    assert captions(scan(data(folder, captions="sidecar"))) == [f"side {n}" for n in range(4)]
    assert set(captions(scan(data(folder, captions="prompt", prompt="a dog")))) == {"a dog"}


ROWS = [{"file_name": f"{n}.png", "text": f"row {n}"} for n in range(4)]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ((*ROWS, ROWS[1]), r"metadata.jsonl line 5 gives '1.png' a second caption"),
        (ROWS[:2], r"image '2.png' has no caption \(1 more: 3.png\)"),
        ((*ROWS[:3], {"file_name": "3.png", "text": "  "}), r"line 4 \('3.png'\) has no caption"),
        ((*ROWS[:3], {"file_name": "3.png", "text": 7}), r"line 4 \('3.png'\) has no caption"),
        (
            (*ROWS, {"file_name": "5.png", "text": "x"}),
            r"line 5 names '5.png', no image of this folder: did you mean",
        ),
        ((*ROWS, {"file_name": "../set/3.png", "text": "x"}), r"line 5 names"),
        ((*ROWS[:3], '{"file_name": '), "line 4 is not JSON"),
        ((*ROWS[:3], "[" * 100_000), "line 4 is not JSON"),
        ((*ROWS[:3], "[1]"), "line 4 has no file_name"),
        ((*ROWS[:3], '{"file_name": "3.png", "text": "\\ud800"}'), "line 4 .* surrogate"),
    ],
)
def test_wrong_metadata_is_named_by_line(folder: Path, rows: tuple[object, ...], words: str) -> None:
    metadata(folder, *rows)
    with pytest.raises(UserError, match=words):
        scan(data(folder))


def test_captions_that_are_asked_for_must_be_there(folder: Path) -> None:
    with pytest.raises(UserError, match=r"metadata.jsonl cannot be read: No such file"):
        scan(data(folder, captions="metadata"))
    (folder / "1.txt").write_text("one")
    (folder / "2.txt").write_text("")
    with pytest.raises(UserError, match=r"'0.png' has no caption \(2 more: 2.png, 3.png\).*\.txt"):
        scan(data(folder))
    (folder / "1.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"1.txt is not UTF-8 at byte 0"):
        scan(data(folder))
    with pytest.raises(UserError, match=r"set data.subject \(for example 'sks dog'\) or data.prompt"):
        scan(Data(images=str(folder), captions="prompt"))


@settings(max_examples=cases(80), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=80), st.text(alphabet='{}[]":,\\ \nfile_nmtx01.pg', max_size=120).map(str.encode)))
def test_any_metadata_gives_captions_or_a_typed_error(folder: Path, raw: bytes) -> None:
    (folder / "metadata.jsonl").write_bytes(raw)
    try:
        found = entries(str(folder), "auto", None, "data.images")
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(entry.caption for entry in found)


def test_every_bad_image_is_listed(folder: Path) -> None:
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "2.jpg").write_text("a text file")
    (folder / "4.png").write_bytes(b"")
    photo(folder / "5.png", 5, (1, 1))
    (folder / "6.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(BadImage, match=r"^image '1.png' is damaged .*; 4 more .*: 2.jpg, 4.png, 5.png, 6.heic$"):
        scan(data(folder))


def test_above_the_limit_only_headers_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(dataset, "DECODED_AT_SCAN", 3)
    found = scan(data(folder))
    with pytest.raises(BadImage, match=r"'1.png' is damaged"):
        found.read(found.images[1])


def test_missing_and_empty_folders(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"data.images '.*nowhere' does not exist"):
        scan(data(tmp_path / "nowhere"))
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    with pytest.raises(UserError, match=r"data.images '.*empty' holds no images"):
        scan(data(tmp_path / "empty"))
    with pytest.raises(UserError, match="is a file, not a folder"):
        scan(data(folder / "0.png"))


def test_links_may_not_leave_the_folder(tmp_path: Path, folder: Path) -> None:
    (folder / "inside.png").symlink_to("0.png")
    assert len(scan(data(folder))) == 4  # the same image under another name
    (folder / "4.png").symlink_to(photo(tmp_path / "elsewhere.png", 7))
    (folder / "loop.png").symlink_to("loop.png")
    with pytest.raises(BadImage, match=r"'4.png' is a link out of its folder.*1 more.*loop.png"):
        scan(data(folder))


def test_copies_are_one_image_unless_described_differently(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "copy.png").write_bytes((folder / "2.png").read_bytes())
    with caplog.at_level(logging.WARNING):
        found = scan(data(folder))
    assert len(found) == 4
    assert "copy.png" in caplog.text
    metadata(folder, *ROWS, {"file_name": "copy.png", "text": "another view on it"})
    twice = scan(data(folder))
    assert len(twice) == 5
    # Held out or trained on, but never both.
    for holdout in range(1, 4):
        train, held_out = split(twice, data(folder, holdout=holdout))
        assert len({image.key for image in held_out}) == holdout
        assert not {image.key for image in train} & {image.key for image in held_out}
        assert len(train) + len(held_out) == 5


def test_a_changed_file_is_noticed(folder: Path) -> None:
    found = scan(data(folder))
    photo(folder / "0.png", 77)
    with pytest.raises(BadImage, match=r"'0.png' has changed since"):
        found.read(found.images[0])


def test_the_split_follows_content_not_names(tmp_path: Path, folder: Path) -> None:
    train, held_out = split(scan(data(folder)), data(folder))
    assert (len(train), len(held_out)) == (3, 1)
    for number in range(4):
        (tmp_path / "renamed").mkdir(exist_ok=True)
        (tmp_path / "renamed" / f"{9 - number}.png").write_bytes((folder / f"{number}.png").read_bytes())
    _, again = split(scan(data(tmp_path / "renamed")), data(folder))
    assert {image.key for image in again} == {image.key for image in held_out}
    everything, none = split(scan(data(folder)), data(folder, holdout=0))
    assert (len(everything), len(none)) == (4, 0)


def test_nothing_left_after_the_split(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no instance images left .*: 4 found, 4 held out; .*data.holdout=3"):
        split(scan(data(folder)), data(folder, holdout=4))


def test_a_limit_keeps_the_first_images_to_train_on(folder: Path) -> None:
    whole, held_out = split(scan(data(folder)), data(folder, holdout=1))
    few, same = split(scan(data(folder)), data(folder, holdout=1, limit=2))
    assert few.images == whole.images[:2]
    assert same.images == held_out.images
    with pytest.raises(UserError, match=r"data\.limit = 4: there are only 3 images to train on"):
        split(scan(data(folder)), data(folder, holdout=1, limit=4))


def test_a_validation_folder_replaces_the_holdout(tmp_path: Path, folder: Path) -> None:
    for number in (20, 21):
        photo(tmp_path / "held" / f"{number}.png", number)
    wanted = data(folder, validation=str(tmp_path / "held"))
    train, held_out = split(scan(wanted), wanted)
    assert (len(train), len(held_out)) == (4, 2)
    photo(tmp_path / "held" / "leak.png", 3)
    with pytest.raises(UserError, match=r"held-out image 'leak.png' is also trained on, as '.*3.png'"):
        split(scan(wanted), wanted)
    with pytest.raises(UserError, match=r"data.validation '.*nowhere' does not exist"):
        split(scan(wanted), data(folder, validation=str(tmp_path / "nowhere")))


def test_class_images(tmp_path: Path, folder: Path) -> None:
    assert len(scan_class(data(folder))) == 0
    assert len(scan_class(data(folder, class_name="dog", prior=Prior()))) == 0
    (folder / "0.txt").write_text("not used: class images have the class prompt")
    given = scan_class(data("unused", class_name="dog", prior=Prior(images=str(folder))))
    assert [(p.role, p.caption) for p in given] == [("class", "a photo of a dog")] * 4
    few = scan_class(data("unused", class_name="dog", prior=Prior(images=str(folder), num_class_images=3)))
    assert {image.key for image in few} < {image.key for image in given}
    assert len(few) == 3
    assert captions(class_folder(folder, "a dog")) == ["a dog"] * 4
    with pytest.raises(UserError, match=r"data.prior.images '.*nowhere'"):
        scan_class(data("unused", class_name="dog", prior=Prior(images=str(tmp_path / "nowhere"))))


def test_rows_cross_a_border_and_come_back(folder: Path) -> None:
    found = scan(data(folder))
    assert ImageSet.from_rows(json.loads(json.dumps(found.index_rows()))).images == found.images
    again = pickle.loads(pickle.dumps(found))
    assert again.read(again.images[2]).tobytes() == found.read(found.images[2]).tobytes()
    first = found.images[0]
    assert image_row(first.source, Path(first.source).read_bytes(), first.caption) == first


def test_a_shipped_subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo(tmp_path / "tiny" / "subjects" / "robot" / "0.png", 1)
    monkeypatch.setattr(image_sources.resources, "files", lambda package: tmp_path)
    assert len(scan(data("subject:robot"))) == 1
    with pytest.raises(UserError, match="no subject named 'robt' is shipped: did you mean 'robot'"):
        scan(data("subject:robt"))
    with pytest.raises(UserError, match="no subject named"):
        scan(data("subject:../subjects/robot"))


def table(path: Path, folder: Path, *, struct: bool = False, group: int = 2, **columns: list[Any]) -> Path:
    raw = [file.read_bytes() for file in sorted(folder.glob("*.png"))]
    image = pa.array([{"bytes": item, "path": "x"} for item in raw]) if struct else pa.array(raw)
    pq.write_table(pa.table({"image": image, **columns}), path, row_group_size=group)
    return path


@pytest.mark.parametrize("struct", [False, True])
def test_parquet_is_read_like_a_folder(tmp_path: Path, folder: Path, struct: bool) -> None:
    texts = [f"row {n}" for n in range(4)]
    found = scan(data(table(tmp_path / "a.parquet", folder, struct=struct, text=texts)))
    assert captions(found) == texts
    assert [image.source for image in found] == [f"{tmp_path}/a.parquet#{n}" for n in range(4)]
    plain = scan(data(folder))
    assert [image.key for image in found] == [image.key for image in plain]
    for n in (3, 0, 2, 1, 1):
        assert found.read(found.images[n]).tobytes() == plain.read(plain.images[n]).tobytes()


def test_parquet_captions(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "many").mkdir()
    table(tmp_path / "many" / "0.parquet", folder, caption=["c"] * 4)
    assert captions(scan(data(tmp_path / "many"))) == ["c"] * 4
    assert captions(scan(data(tmp_path / "many", captions="prompt"))) == ["a photo of sks dog"] * 4
    bare = table(tmp_path / "bare.parquet", folder)
    assert captions(scan(data(bare))) == ["a photo of sks dog"] * 4
    with pytest.raises(UserError, match="no column text, caption, prompt, only image"):
        scan(data(bare, captions="metadata"))
    with pytest.raises(UserError, match="sidecar is for folders"):
        scan(data(bare, captions="sidecar"))
    with pytest.raises(UserError, match=r"b.parquet row 2 has no caption"):
        scan(data(table(tmp_path / "b.parquet", folder, text=["a", "b", None, "d"])))


def test_wrong_parquet_is_named(tmp_path: Path, folder: Path) -> None:
    junk = tmp_path / "junk.parquet"
    junk.write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"junk.parquet is not readable Parquet"):
        scan(data(junk))
    pq.write_table(pa.table({"image": ["a/path.png"], "text": ["x"]}), junk)
    with pytest.raises(UserError, match=r"no column image of bytes or struct\{bytes, path\}: it has image, text"):
        scan(data(junk))
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), junk)
    with pytest.raises(UserError, match=r"junk.parquet has no rows"):
        scan(data(junk))
    raw = (folder / "0.png").read_bytes()
    pq.write_table(pa.table({"image": pa.array([raw, None, b"", raw[:90]])}), junk)
    with pytest.raises(BadImage, match=r"'junk.parquet#1' has no bytes.*2 more.*: junk.parquet#2, junk.parquet#3"):
        scan(data(junk))
    table(folder / "x.parquet", folder)
    with pytest.raises(UserError, match=r"holds images \(0.png\) and Parquet files \(x.parquet\)"):
        scan(data(folder))


def test_a_row_group_of_many_pages_is_not_held_whole(tmp_path: Path) -> None:
    rows, size = 64, 2**18
    raw = pa.table({"image": [np.random.default_rng(n).bytes(size) for n in range(rows)]})
    options = {"row_group_size": rows, "write_batch_size": 1, "use_dictionary": False}
    pq.write_table(raw, tmp_path / "a.parquet", **options)
    del raw
    reader = Reader()
    before, peak = pa.total_allocated_bytes(), 0
    for n in [*range(rows), 5]:
        assert reader.read(f"{tmp_path}/a.parquet#{n}") == np.random.default_rng(n).bytes(size)
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < rows * size / 3
    with pytest.raises(BadImage, match="the file has 64 rows"):
        reader.read(f"{tmp_path}/a.parquet#64")


def test_a_row_group_beyond_memory_is_refused(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_images, "MAX_GROUP_BYTES", 1_000)
    with pytest.raises(UserError, match=r"a.parquet has a row group of .* GiB, the limit .*row_group_size=100"):
        scan(data(table(tmp_path / "a.parquet", folder, struct=True)))


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the DreamBooth photos are not beside this checkout")
def test_real_photos_are_scanned_and_split() -> None:
    wanted = data(PHOTOS / "dog")
    found = scan(wanted)
    train, held_out = split(found, wanted)
    assert (len(found), len(train), len(held_out)) == (5, 4, 1)
    assert min(min(image.width, image.height) for image in found) > 200
