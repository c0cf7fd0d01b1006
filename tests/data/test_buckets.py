"""The table's areas, limits and steps, and which bucket an image gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdxl_ray.data.buckets import MAX_ASPECT, Buckets, cover
from sdxl_ray.errors import UserError


def test_the_table_at_1024_is_the_well_known_one() -> None:
    half = {(704, 1472), (768, 1344), (832, 1216), (896, 1152), (960, 1088), (1024, 1024)}
    assert set(Buckets(1024).table) == half | {(w, h) for h, w in half}


@pytest.mark.parametrize("resolution", [8, 64, 256, 512, 768, 1024, 1536])
def test_tables_keep_their_area_and_step(resolution: int) -> None:
    table = Buckets(resolution).table
    step = 64 if resolution >= 512 else 8
    assert (resolution, resolution) in table
    assert len(set(table)) == len(table)
    for h, w in table:
        assert h % step == w % step == 0
        assert (w, h) in table
        assert max(h, w) <= MAX_ASPECT * min(h, w)
        assert 0.75 * resolution**2 <= h * w <= resolution**2


def test_squares_only() -> None:
    assert Buckets(512, aspects=False).table == ((512, 512),)
    assert Buckets(512, aspects=False).bucket(4000, 1000) == (512, 512)


@pytest.mark.parametrize(("resolution", "fix"), [(1000, 1024), (520, 512), (63, 64), (7, 8)])
def test_impossible_resolutions_name_the_nearest(resolution: int, fix: int) -> None:
    with pytest.raises(UserError, match=rf"data.resolution {resolution} .* use {fix}$"):
        Buckets(resolution)


def test_nearest_bucket() -> None:
    buckets = Buckets(1024)
    assert buckets.bucket(4032, 3024) == (896, 1152)
    assert buckets.bucket(3024, 4032) == (1152, 896)
    assert buckets.bucket(1920, 1080) == (768, 1344)
    assert buckets.bucket(500, 500) == (1024, 1024)
    assert buckets.bucket(9000, 1000) == (704, 1472)


@given(st.integers(8, 20_000), st.integers(8, 20_000), st.sampled_from([64, 512, 1024]))
def test_cover_just_covers(width: int, height: int, resolution: int) -> None:
    bucket = Buckets(resolution).bucket(width, height)
    resize_h, resize_w = cover(width, height, bucket)
    assert resize_h >= bucket[0]
    assert resize_w >= bucket[1]
    assert resize_h == bucket[0] or resize_w == bucket[1]
    assert (resize_h - 1) / height <= max(resize_w / width, bucket[0] / height)
