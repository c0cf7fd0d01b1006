"""The images that responses link to: how long, how many, and under what names."""

from __future__ import annotations

import asyncio

import pytest
from ray import serve
from starlette.requests import Request

from serve.app import _images
from serve.config import ServeConfig, override
from serve.http.address import base_url
from serve.http.errors import ApiError
from serve.http.image_links import ImageLinks, ImageLinkStore, KeptImage


def test_an_image_is_kept_for_its_time() -> None:
    now = 0.0
    store = ImageLinkStore(60, 1000, clock=lambda: now)
    names = store.put([b"one", b"two"], "webp")
    assert names is not None and names[0] != names[1] and all(len(name) == 32 + len(".webp") for name in names)
    now = 59.0
    assert store.get(names[1]) == KeptImage(b"two", "image/webp", 1)
    later = store.put([b"three"], "png")
    assert later is not None
    now = 60.0
    assert [store.get(name) for name in names] == [None, None]
    assert store.get(later[0]) == KeptImage(b"three", "image/png", 59)
    assert store.bytes == 5
    now = 200.0
    store.sweep()
    assert store.bytes == 0


def test_memory_is_bounded_and_the_oldest_go_first() -> None:
    store = ImageLinkStore(60, 10)
    first, second = store.put([b"1234"], "png"), store.put([b"1234"], "png")
    third = store.put([b"12", b"34"], "png")
    assert first and second and third
    assert store.get(first[0]) is None
    assert all(store.get(name) for name in (*second, *third))
    assert store.put([b"123456", b"12345"], "png") is None  # more than all of the memory: nothing is dropped for it
    assert store.bytes == 8


def _base(headers: dict[str, str], public_url: str | None = None, root_path: str = "") -> str:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {
        "type": "http",
        "scheme": "http",
        "server": ("::1", 8000),
        "path": "/",
        "headers": raw,
        "query_string": b"",
    }
    return base_url(Request({**scope, "root_path": root_path}), public_url)


def test_links_begin_with_the_address_that_the_client_used() -> None:
    host = {"Host": "box:8000"}
    proxied = {**host, "X-Forwarded-Host": "art.example.org, inner", "X-Forwarded-Proto": "https, http"}
    for headers, expected in (
        (host, "http://box:8000"),
        ({"Host": "[::1]:8000"}, "http://[::1]:8000"),
        ({}, "http://[::1]:8000"),
        (proxied, "https://art.example.org"),
        ({**proxied, "X-Forwarded-Prefix": "/sdxl/"}, "https://art.example.org/sdxl"),
        ({**host, "Forwarded": 'for=10.0.0.1;host="art.example.org:444";proto=https'}, "https://art.example.org:444"),
    ):
        assert _base(headers) == expected
        assert _base(headers, "https://public.example.org/x/") == "https://public.example.org/x"
    assert _base(host, root_path="/behind") == "http://box:8000/behind"


def test_no_header_puts_anything_else_into_a_link() -> None:
    for wrong in ("evil.org/path", "user@evil.org", 'a"b', "a b", "a\\b", "a?b", "a#b", "<script>", "a:99999999", ""):
        assert _base({"Host": wrong}) == "http://[::1]:8000"
        assert _base({"Host": "box", "X-Forwarded-Host": wrong}) == "http://box"
        assert _base({"Host": "box", "Forwarded": f"host={wrong}"}) == "http://box"
    assert _base({"Host": "box", "X-Forwarded-Proto": "javascript"}) == "http://box"
    for wrong in ("//evil.org", "/a/../b?c", "a", "/a b"):
        assert _base({"Host": "box", "X-Forwarded-Prefix": wrong}).startswith("http://box")
    assert _base({"Host": "box", "X-Forwarded-Prefix": "//evil.org"}) == "http://box"


def test_every_ingress_finds_the_images_of_the_others() -> None:
    """The deployment itself, in this process; each `ImageLinks` is one ingress's."""
    handle = serve.run(_images(ServeConfig()), name="images-alone", _local_testing_mode=True)  # type: ignore[arg-type]
    one, other = ImageLinks(handle, 3600), ImageLinks(handle, 3600)

    async def use() -> None:
        names = await one.put([b"first", b"second"], "jpeg")
        kept = [await other.get(name) for name in names]
        assert [(image.data, image.media_type) for image in kept] == [
            (b"first", "image/jpeg"),
            (b"second", "image/jpeg"),
        ]
        with pytest.raises(ApiError) as gone:
            await other.get("A" * 32 + ".jpeg")
        assert (gone.value.status, gone.value.code) == (404, "image_not_found")
        with pytest.raises(ApiError) as large:
            await one.put([bytes(257 * 2**20)], "png")
        assert (large.value.status, large.value.param) == (422, "response_format")

    asyncio.run(use())
    assert _images(override(ServeConfig(), {"images.keep_seconds": 0})) is None
