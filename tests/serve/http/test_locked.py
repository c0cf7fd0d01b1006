"""An endpoint with API keys, without any replica: who is let in, what is told to others, and what is logged."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from serve.config import ServeConfig
from serve.http import routes
from serve.http.auth import Keys
from serve.http.endpoint import Endpoint
from serve.replica.placement import Placement, VariantPlacement

KEY = "a key of thirty-two characters.."
PATH = "/v1/images/generations"


@pytest.fixture
def locked() -> Iterator[TestClient]:
    layout = Placement(64, {}, {"base": VariantPlacement("unknown", reason="nothing is served in this test")})

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        if scope["type"] == "http":
            endpoint = Endpoint(ServeConfig(), layout, {}, Keys([KEY]))
            await routes.build(endpoint)(scope, receive, send)

    yield TestClient(app, raise_server_exceptions=False)


def test_paths_of_the_api_need_a_key(locked: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("ray.serve")
    log.addHandler(caplog.handler)  # Serve may have cut it off from the others
    log.setLevel(logging.INFO)
    secret = {"Authorization": f"Bearer {KEY}"}
    for method, path in (("GET", "/v1/models"), ("GET", "/v1/models/base"), ("POST", PATH)):
        for headers in ({}, {"Authorization": f"Bearer {KEY}x"}):
            refused = locked.request(method, path, headers=headers, content=b"no JSON")
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["error"]["code"] == "invalid_api_key"
    too_much = locked.post(PATH, headers={**secret, "Content-Type": "application/json"}, content=b" " * 70_000)
    assert (too_much.status_code, too_much.json()["error"]["code"]) == (413, "body_too_large")
    assert locked.post(PATH, headers=secret, content=b"{}").status_code == 415
    assert locked.get("/v1/models", headers=secret).json()["data"][0]["reason"] == "nothing is served in this test"
    let_in = locked.post(PATH, headers=secret, json={"prompt": "a very private prompt"})
    assert (let_in.status_code, let_in.json()["error"]["code"]) == (404, "model_stopped")
    assert locked.get("/openapi.json").json()["paths"][PATH]["post"]["security"] == [{"key": []}]
    log.removeHandler(caplog.handler)
    # Every request for images is in the log (and counted), also one that was never read.
    assert [json.loads(record.message)["status"] for record in caplog.records] == [401, 401, 413, 415, 404]
    assert KEY not in caplog.text
    assert "private" not in caplog.text


def test_probes_and_the_page_need_none_and_tell_no_reasons(locked: TestClient) -> None:
    assert locked.get("/health").json() == {"status": "ok"}
    assert "nothing is served" not in locked.get("/ready").text
    assert locked.get("/").status_code == 200
