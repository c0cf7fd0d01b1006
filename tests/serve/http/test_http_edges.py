"""What holds at every path: HEAD beside GET, a slash at the end, CORS, and a message where there is nothing."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from serve.config import ServeConfig, override
from serve.http import routes
from serve.http.auth import Keys
from serve.http.endpoint import Endpoint
from serve.replica.placement import Placement, VariantPlacement

KEY = "a key of thirty-two characters.."
PATH = "/v1/images/generations"
SITE = "https://app.example.org"
PREFLIGHT = {
    "Origin": SITE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}


def served(*keys: str, **changes: Any) -> TestClient:
    """An endpoint without replicas."""
    layout = Placement(64, {}, {"base": VariantPlacement("unknown", reason="nothing is served in this test")})
    endpoint = Endpoint(override(ServeConfig(), changes), layout, {}, Keys([*keys]))
    return TestClient(routes.build(endpoint), raise_server_exceptions=False, follow_redirects=False)


def test_head_is_answered_wherever_get_is() -> None:
    client = served()
    described = client.get("/openapi.json").json()["paths"]
    paths = [path.replace("{model}", "base") for path, methods in described.items() if "get" in methods]
    assert {"/health", "/ready", "/v1/models", "/v1/models/base"} <= set(paths)
    for path in (*paths, "/", "/openapi.json", "/ui/page.js", "/ui/api.js", "/ui/style.css", "/nowhere"):
        get, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers == get.headers
        if path not in ("/", "/nowhere"):
            assert client.get(f"{path}/").content == get.content
    refused = client.put("/v1/models")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
    assert (client.head(PATH).status_code, client.head(PATH).headers["allow"]) == (405, "POST")


def test_no_site_is_let_in_by_default() -> None:
    client = served()
    for answer in (client.get("/v1/models", headers={"Origin": SITE}), client.options(PATH, headers=PREFLIGHT)):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_listed_sites_are_let_in_with_their_keys() -> None:
    client = served(KEY, cors_origins=[SITE, "http://localhost:3000"])
    before = client.options(PATH, headers=PREFLIGHT)
    assert before.status_code == 200
    assert before.headers["access-control-allow-origin"] == SITE
    assert "POST" in before.headers["access-control-allow-methods"]
    allowed = before.headers["access-control-allow-headers"].lower()
    assert all(name in allowed for name in ("authorization", "content-type", "x-stainless-os"))
    for headers, status in (({}, 401), ({"Authorization": f"Bearer {KEY}"}, 200)):
        answer = client.get("/v1/models", headers={"Origin": SITE, **headers})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, SITE)
        assert answer.headers["vary"] == "Origin"
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"x-sdxl-ray-seed", "x-sdxl-ray-artifact", "x-sdxl-ray-total-ms", "Retry-After"} <= set(exposed)
        assert "access-control-allow-credentials" not in answer.headers
    other = client.options(PATH, headers={**PREFLIGHT, "Origin": "https://evil.example.org"})
    assert "access-control-allow-origin" not in other.headers
    client = served(KEY, cors_origins=["*"])
    assert client.options(PATH, headers=PREFLIGHT).headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    ("method", "path", "code", "message"),
    [
        ("POST", "/v1/images/edits", "not_offered", "images.edit is not offered; this endpoint generates images from"),
        ("POST", "/v1/images/variations", "not_offered", "images.create_variation is not offered"),
        ("POST", "/v1/chat/completions", "not_offered", "chat is not offered"),
        ("POST", "/images/generations", "not_found", "did you mean /v1/images/generations?"),
        ("POST", "/v1/v1/images/generations", "not_found", "did you mean /v1/images/generations?"),
        ("POST", "/v1/images/generation", "not_found", "did you mean /v1/images/generations?"),
        ("GET", "/models", "not_found", "did you mean /v1/models?"),
        ("GET", "/wp-admin.php", "not_found", "this endpoint generates images from text"),
        ("GET", "/image-files/x.png", "image_not_found", "an image is kept for 3600 s"),
    ],
)
def test_where_there_is_nothing_a_client_is_told_where_to_go(method: str, path: str, code: str, message: str) -> None:
    client = served(KEY)
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, code)
    assert message in answer.json()["error"]["message"]
