"""Captioned sets through Ray Data: the same run as from a folder, without the set in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdxl_ray.config.recipe import override
from sdxl_ray.data.dataset import scan
from sdxl_ray.distributed.ray_data import scan_stream, streams
from sdxl_ray.distributed.train import launch
from sdxl_ray.errors import UserError
from tests.distributed.conftest import captioned, examples, losses, quick
from tests.distributed.cuts import Cut, streamed

pytestmark = [pytest.mark.slow, pytest.mark.shares("cuts"), pytest.mark.chaos]


def test_a_parquet_set_streams_and_trains_like_a_scanned_one(cuts: dict[str, Cut], tmp_path: Path) -> None:
    cut = cuts["streamed"]
    assert streams(cut.recipe)
    found = cut.run.images()
    assert {p.key for p in (*found.train, *found.held_out)} == {p.key for p in scan(cut.recipe.data)}
    phases = [row for row in cut.rows if row["kind"] == "phase"]
    assert [row["done"] for row in phases if row["name"] == "reading images"][-1] == 40
    assert "caching images" in {row["name"] for row in phases}

    alone = override(cut.recipe, {"parallel.workers": 1, "parallel.engine": "local"})
    scanned = launch(alone, storage=tmp_path, name="run")
    assert examples(cut.run.folder) == examples(scanned.folder)
    ours, theirs = ([float.fromhex(x) for x in losses(folder)] for folder in (cut.run.folder, scanned.folder))
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.exhaustive
def test_a_launch_streams(ray_cluster: None, tmp_path: Path) -> None:
    recipe = streamed(captioned(tmp_path, 40))
    rows: list[dict[str, Any]] = []
    launch(recipe, storage=tmp_path, name="run", on_row=rows.append)
    assert {"reading images", "caching images"} <= {row["name"] for row in rows if row["kind"] == "phase"}


def test_a_bad_image_of_a_stream_is_named(ray_cluster: None, tmp_path: Path) -> None:
    rows = [{"image": b"no image", "text": "a robot"}] * 2
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    with pytest.raises(UserError, match=r"set\.parquet#0"):
        scan_stream(quick("tiny_lora", data__images=str(tmp_path / "set.parquet")), lambda row: None)
