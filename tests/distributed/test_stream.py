"""Captioned sets through Ray Data: the same run as from a folder, without the set in one process."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sdxl_ray.core.dataset import scan
from sdxl_ray.distributed.stream import scan_stream, streams
from sdxl_ray.distributed.train import launch
from sdxl_ray.errors import UserError
from tests.distributed.conftest import examples, losses, quick

pytestmark = pytest.mark.slow


def _captioned(folder: Path, count: int) -> Path:
    """A Parquet file of plain pictures in several shapes, each with a caption of its own."""
    rows = []
    for i in range(count):
        buffer = io.BytesIO()
        Image.new("RGB", (48 + 8 * (i % 3), 64), ((i * 37) % 256, (i * 91) % 256, 128)).save(buffer, format="PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "text": f"a photo of a robot number {i}"})
    pq.write_table(pa.Table.from_pylist(rows), folder / "set.parquet", row_group_size=8)
    return folder / "set.parquet"


def test_a_parquet_set_streams_and_trains_like_a_scanned_one(ray_cluster: None, tmp_path: Path) -> None:
    source = _captioned(tmp_path, 40)
    settings: dict[str, Any] = {
        "data__images": str(source),
        "data__validation": None,
        "data__subject": None,
        "optim__steps": 6,
        "checkpoint__every": 6,
        "parallel__workers": [1, 2],
    }
    streamed = quick("tiny_lora", **settings)
    assert streams(streamed)
    rows: list[dict[str, Any]] = []
    found = scan_stream(streamed, rows.append)
    assert {p.key for p in (*found.train, *found.held_out)} == {p.key for p in scan(streamed.data)}
    assert [row["done"] for row in rows][-1] == 40

    phases: set[str] = set()
    run = launch(streamed, storage=tmp_path / "a", name="run", on_row=lambda row: phases.add(str(row.get("name"))))
    assert {"reading pictures", "caching pictures"} <= phases
    alone = quick("tiny_lora", **{**settings, "parallel__workers": 1, "parallel__engine": "local"})
    scanned = launch(alone, storage=tmp_path / "b", name="run")
    assert examples(run.folder) == examples(scanned.folder)
    ours, theirs = ([float.fromhex(x) for x in losses(result.folder)] for result in (run, scanned))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_bad_picture_of_a_stream_is_named(ray_cluster: None, tmp_path: Path) -> None:
    rows = [{"image": b"no picture", "text": "a robot"}] * 2
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    with pytest.raises(UserError, match=r"set\.parquet#0"):
        scan_stream(quick("tiny_lora", data__images=str(tmp_path / "set.parquet")), lambda row: None)
