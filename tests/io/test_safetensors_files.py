"""Safetensors files that somebody else made: any bytes are a header or one line, and no code ever runs."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from sdxl_ray.errors import UserError
from sdxl_ray.io.safetensors_files import read_header
from tests.cases import cases

pytestmark = pytest.mark.chaos

WHOLE = save({"a": torch.arange(4.0), "b": torch.zeros(2, 3)}, {"format": "pt"})
HEADERS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["data_offsets", "dtype", "shape", "__metadata__", "a"]), inner, max_size=3)
    ),
    max_leaves=10,
)


def _read(folder: Path, data: bytes) -> dict[str, object] | None:
    file = folder / "x.safetensors"
    file.write_bytes(data)
    try:
        return read_header(file, "here")
    except UserError as error:
        assert "\n" not in str(error) and "x.safetensors" in str(error)
        return None


@settings(max_examples=cases(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=4), st.integers(0, 8))
def test_any_damage_is_a_header_or_a_typed_error(tmp_path: Path, damage: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(WHOLE)
    for place, value in damage:
        data[place] = value
    header = _read(tmp_path, bytes(data[: len(data) - cut]))
    assert cut == 0 or header is None or damage


@settings(max_examples=cases(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(HEADERS, st.integers(-4, 2**63 - 1))
def test_any_header_is_read_or_a_typed_error(tmp_path: Path, plain: object, wrong: int) -> None:
    text = json.dumps(plain).encode()
    _read(tmp_path, struct.pack("<Q", len(text)) + text)
    _read(tmp_path, struct.pack("<q", wrong) + text)


def test_a_header_that_claims_gigabytes_costs_none(tmp_path: Path) -> None:
    import tracemalloc

    text = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    tracemalloc.start()
    assert _read(tmp_path, struct.pack("<Q", len(text)) + text) is None
    assert _read(tmp_path, struct.pack("<Q", 2**62) + text) is None
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_the_whole_file_is_read(tmp_path: Path) -> None:
    header = _read(tmp_path, WHOLE)
    assert header is not None and set(header) == {"a", "b"}
    with pytest.raises(UserError, match=r"here: gone\.safetensors cannot be read: No such file"):
        read_header(tmp_path / "gone.safetensors", "here")
