"""Files written tensor by tensor, and the hashes that sites and tools compute of them."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from sdxl_ray.formats.hashes import file_hashes
from sdxl_ray.formats.tensor_file import (
    CONTENT_HASH,
    KOHYA_HASH,
    LEGACY_HASH,
    NAMES,
    Entry,
    write_in_memory,
    write_tensors,
)

KOHYA = {"ss_network_dim": "4", "ss_tag_frequency": '{"a": 1}'}
ALL = (CONTENT_HASH, KOHYA_HASH, LEGACY_HASH)


def tensors(numbers: int = 1000) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "b.lora_up.weight": torch.randn(numbers, 2, generator=generator).half(),
        "a.lora_down.weight": torch.randn(2, 5, generator=generator).half(),
        "a.alpha": torch.tensor(4.0),
        "ids": torch.arange(7),
    }


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata())


def test_the_library_reads_what_is_written_in_its_own_layout(tmp_path: Path) -> None:
    some = tensors()
    write_in_memory(tmp_path / "ours.safetensors", some, {})
    save_file(some, tmp_path / "theirs.safetensors")
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    read = load_file(tmp_path / "ours.safetensors")
    assert all(torch.equal(read[name], some[name]) for name in some)


@pytest.mark.parametrize("dtype", NAMES)
def test_every_type_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    one = torch.tensor([0, 1, 1, 0]).to(dtype)
    write_in_memory(tmp_path / "x.safetensors", {"x": one, "empty": one[:0]}, {"k": "\u00e9"})
    read = load_file(tmp_path / "x.safetensors")
    assert read["x"].dtype == dtype
    assert torch.equal(read["x"].view(torch.uint8), one.view(torch.uint8))
    assert read["empty"].numel() == 0
    assert metadata(tmp_path / "x.safetensors") == {"k": "\u00e9"}


def test_equal_content_is_equal_bytes(tmp_path: Path) -> None:
    some = tensors()
    for name, order in (("one", some), ("two", dict(reversed(some.items())))):
        write_in_memory(tmp_path / name, order, dict(sorted(KOHYA.items(), reverse=name == "two")), ALL)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("numbers", [1000, 700_000])
def test_stored_hashes_are_those_of_the_bytes_as_written(numbers: int, tmp_path: Path) -> None:
    """Recomputed by their rules: everything after the header; and 64 KiB at 1 MiB of the file with `ss_*` alone."""
    some, file = tensors(numbers), tmp_path / "x.safetensors"
    write_in_memory(file, some, {**KOHYA, "modelspec.title": "x"}, ALL)
    found, data = metadata(file), file.read_bytes()
    content = data[8 + struct.unpack("<Q", data[:8])[0] :]
    assert found[CONTENT_HASH] == "0x" + hashlib.sha256(content).hexdigest()
    assert found[KOHYA_HASH] == hashlib.sha256(content).hexdigest()
    alone = save(some, KOHYA)
    assert found[LEGACY_HASH] == hashlib.sha256(alone[2**20 : 2**20 + 2**16]).hexdigest()[:8]
    assert (found[LEGACY_HASH] == "e3b0c442") == (numbers == 1000)  # the hash of nothing, below 1 MiB alone
    assert not found[KOHYA_HASH].startswith("e3b0c442")


@pytest.mark.parametrize("numbers", [1000, 700_000])
def test_site_hashes_by_their_rules(numbers: int, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    write_in_memory(file, tensors(numbers), KOHYA, ALL)
    found, data = file_hashes(file), file.read_bytes()
    assert found.auto_v1 == hashlib.sha256(data[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    assert found.auto_v2 == hashlib.sha256(data).hexdigest()[:10]
    assert found.auto_v3 == metadata(file)[KOHYA_HASH][:12]


def test_another_title_does_not_change_the_content_hash(tmp_path: Path) -> None:
    for title in ("a", "another"):
        write_in_memory(tmp_path / title, tensors(), {**KOHYA, "modelspec.title": title}, ALL)
    one, other = (metadata(tmp_path / title) for title in ("a", "another"))
    assert one[KOHYA_HASH] == other[KOHYA_HASH]
    assert one[LEGACY_HASH] == other[LEGACY_HASH]


def test_tensors_are_read_one_at_a_time_and_a_failure_leaves_no_file(tmp_path: Path) -> None:
    alive: list[str] = []

    def reader(name: str) -> Tensor:
        alive.append(name)
        if name == "c":
            raise OSError("disk gone")
        return torch.zeros(4)

    entries = [Entry(name, torch.float32, (4,), lambda name=name: reader(name)) for name in "abc"]
    with pytest.raises(OSError, match="disk gone"):
        write_tensors(tmp_path / "x.safetensors", entries, {})
    assert alive == ["a", "b", "c"]
    assert list(tmp_path.iterdir()) == []
