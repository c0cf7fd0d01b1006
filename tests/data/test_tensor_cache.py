"""Tensors come back bit for bit, or not at all."""

from __future__ import annotations

import logging
import pickle
import struct
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdxl_ray.data.tensor_cache import MissingTensors, TensorCache, namespace
from sdxl_ray.errors import RunError, UserError

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]


def item(number: int, size: int = 8) -> tuple[str, dict[str, Tensor]]:
    return f"key{number}", {"latents": torch.full((size,), float(number)), "pooled": torch.tensor(number)}


def parts(folder: Path) -> list[Path]:
    return sorted(folder.rglob("part-*.parquet"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    raw = torch.arange(256, dtype=torch.uint8).repeat(8)  # every byte: NaN payloads, infinities and -0 too
    value = (raw % 2).bool() if dtype == torch.bool else raw.view(dtype)
    tensors = {"plain": value, "turned": value.reshape(2, 2, -1).transpose(0, 2), "one": value[3], "none": value[:0]}
    TensorCache(tmp_path, "n").write([("k", tensors)])
    (back,) = TensorCache(tmp_path, "n").read(["k"])
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (back[name].dtype, back[name].shape) == (dtype, tensor.shape)
        assert bits(back[name]) == bits(tensor)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def test_keys_missing_and_order(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path / "new" / "folder", "n")
    assert cache.missing(["b", "a", "b"]) == ["b", "a"]
    cache.write(iter([item(1), item(2)]))
    assert cache.missing(["key3", "key1"]) == ["key3"]
    assert [row["pooled"].item() for row in cache.read(["key2", "key1", "key2"])] == [2, 1, 2]
    with pytest.raises(MissingTensors, match="1 tensors are not in the cache") as caught:
        cache.read(["key1", "key9"])
    assert caught.value.keys == ("key9",)
    assert pickle.loads(pickle.dumps(caught.value)).keys == ("key9",)


def test_nothing_to_write_makes_no_part(tmp_path: Path) -> None:
    TensorCache(tmp_path, "n").write([])
    assert list(tmp_path.rglob("*")) == []


def test_namespaces_are_apart_and_reproducible(tmp_path: Path) -> None:
    name = namespace("latents", base="abc", precision="fp32")
    assert name == namespace("latents", precision="fp32", base="abc")
    assert name.startswith("latents-")
    assert (
        len({name, namespace("latents", base="abc", precision="bf16"), namespace("text", base="abc", precision="fp32")})
        == 3
    )
    TensorCache(tmp_path, name).write([item(1)])
    assert TensorCache(tmp_path, "other").missing(["key1"]) == ["key1"]


def test_a_reader_sees_other_writers_after_refresh(tmp_path: Path) -> None:
    first, second = TensorCache(tmp_path, "n"), TensorCache(tmp_path, "n")
    second.write([item(1)])
    assert first.missing(["key1"]) == ["key1"]
    first.refresh()
    assert first.missing(["key1"]) == []


def test_an_address_and_a_pickled_copy_read_the_same(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path.as_uri(), "n")
    cache.write([item(1)])
    assert pickle.loads(pickle.dumps(cache)).read(["key1"])[0]["pooled"].item() == 1
    assert TensorCache(tmp_path, "n").missing(["key1"]) == []


def test_what_comes_back_is_the_callers_own(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, "n")
    cache.write([item(1)])
    cache.read(["key1"])[0]["latents"].zero_()
    assert cache.read(["key1"])[0]["latents"].sum() == 8


def test_memory_is_bounded_by_row_groups(tmp_path: Path) -> None:
    size = 2**18  # 1 MiB of fp32
    budget = 5 * 2**20
    cache = TensorCache(tmp_path, "n", budget_bytes=budget)
    cache.write(item(number, size) for number in range(24))
    for number in [*range(24), 3, 0, 23]:
        assert cache.read([f"key{number}"])[0]["latents"][0] == number
        held = sum(
            len(data) for rows in cache._recent.values() for named in rows.values() for _, _, data in named.values()
        )
        assert held == cache._recent_bytes <= budget


def test_concurrent_writers(tmp_path: Path) -> None:
    def work(worker: int) -> None:
        cache = TensorCache(tmp_path, "n")
        for number in range(4):
            cache.write([item(worker * 10 + number), item(100)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    cache = TensorCache(tmp_path, "n")
    keys = [f"key{worker * 10 + number}" for worker in range(4) for number in range(4)]
    assert cache.missing([*keys, "key100"]) == []
    assert [row["pooled"].item() for row in cache.read([*keys, "key100"])] == [
        int(key[3:]) for key in [*keys, "key100"]
    ]
    assert len(parts(tmp_path)) == 16


@pytest.mark.parametrize("damage", ["half", "empty", "footer", "other columns"])
def test_a_damaged_part_is_named_and_left_out(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    cache = TensorCache(tmp_path, "n")
    cache.write([item(1)])
    (part,) = parts(tmp_path)
    cache.write([item(2)])
    data = part.read_bytes()
    if damage == "other columns":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"key": ["key1"]}), part)
    else:
        part.write_bytes({"half": data[: len(data) // 2], "empty": b"", "footer": data[:-8] + b"\xff" * 8}[damage])
    with caplog.at_level(logging.WARNING):
        again = TensorCache(tmp_path, "n")
    assert part.name in caplog.text
    assert again.missing(["key1", "key2"]) == ["key1"]
    again.write([item(1)])
    assert again.read(["key1"])[0]["pooled"].item() == 1


def test_a_flipped_bit_is_found_by_the_checksum(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = TensorCache(tmp_path, "n")
    cache.write([item(7)])
    (part,) = parts(tmp_path)
    data, seven = part.read_bytes(), struct.pack("<f", 7.0) * 8
    assert data.count(seven) == 1
    part.write_bytes(data.replace(seven, struct.pack("<f", 7.5) + seven[4:]))
    fresh = TensorCache(tmp_path, "n")
    assert fresh.missing(["key7"]) == []  # the index is good; the tensor is not
    with caplog.at_level(logging.WARNING), pytest.raises(MissingTensors):
        fresh.read(["key7"])
    assert part.name in caplog.text
    assert fresh.missing(["key7"]) == ["key7"]
    cache.write([item(7)])
    fresh.refresh()
    assert fresh.read(["key7"])[0]["latents"].eq(7).all()


def test_another_part_stands_in_for_a_damaged_one(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, "n")
    cache.write([item(7)])
    cache.write([item(7)])
    first = parts(tmp_path)[0]
    first.write_bytes(first.read_bytes().replace(struct.pack("<f", 7.0), struct.pack("<f", 8.0)))
    assert TensorCache(tmp_path, "n").read(["key7"])[0]["latents"].eq(7).all()


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[str, dict[str, Tensor]]]:
        for number in range(3):
            yield item(number, 2**20)
        raise ValueError("the encoder failed")

    with pytest.raises(ValueError, match="the encoder failed"):
        TensorCache(tmp_path, "n").write(failing())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_that_cannot_be_written_is_a_failed_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((RunError, UserError), match="cache"):
        TensorCache(tmp_path / "file", "n").write([item(1)])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TensorCache(tmp_path, "n")
    cache.write([item(1)])
    name = uuid.uuid4()
    (tmp_path / "n" / f".{name.hex}.tmp").symlink_to("/dev/full")  # the next part goes there
    monkeypatch.setattr(uuid, "uuid4", lambda: name)
    with pytest.raises(RunError, match="is full: free space"):
        cache.write([item(2, 2**20)])
    assert len(list((tmp_path / "n").iterdir())) == 1
    assert cache.missing(["key1", "key2"]) == ["key2"]


def test_an_unknown_address_is_refused() -> None:
    with pytest.raises(UserError, match="'what://x' cannot be opened"):
        TensorCache("what://x", "n")
