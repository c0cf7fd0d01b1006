"""An endpoint with API keys, without any replica: who is let in, what is told to others, and what is logged."""

from __future__ import annotations

import json
import logging

import pytest
from fastapi.testclient import TestClient

from serve.config import ServeConfig
from serve.http import routes
from serve.http.auth import Keys
from serve.http.endpoint import Endpoint
from serve.replica.placement import Placement, VariantPlacement

KEY = "a key of thirty-two characters.."
PATH = "/v1/images/generations"
#: Name of a variant, which callers without a key must not learn.
SECRET = "project-zebra"


@pytest.fixture
def locked() -> TestClient:
    layout = Placement(
        64,
        {},
        {
            "base": VariantPlacement("unknown", reason="nothing is served in this test"),
            SECRET: VariantPlacement("base", group="weights"),
        },
    )
    application = routes.build(Endpoint(ServeConfig(), layout, {}, Keys([KEY])))
    return TestClient(application, raise_server_exceptions=False)


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


@pytest.mark.parametrize("authorization", [None, f"Bearer {KEY}x", f"Basic {KEY}"])
def test_nobody_learns_the_name_of_a_variant_without_a_key(locked: TestClient, authorization: str | None) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    described = locked.get("/openapi.json").json()["paths"]
    paths = {path.replace("{model}", "project-zebr").replace("{name}", "x.png") for path in described}
    paths |= {"/openapi.json", "/docs", "/redoc", "/metrics", "/", "/ui/page.js", "/ui/api.js", "/v1/project-zebr"}
    for path in sorted(paths):
        for method in ("GET", "HEAD", "POST", "PUT", "OPTIONS", "DELETE"):
            answer = locked.request(method, path, headers=headers, content=b'{"prompt": "a", "model": "project-zebr"}')
            assert SECRET not in answer.text + repr(answer.headers), (method, path)
    assert SECRET in locked.get("/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).text
    assert SECRET in locked.get("/ready", headers={"Authorization": f"Bearer {KEY}"}).json()["variants"]


def test_a_probe_without_a_key_gets_the_status_alone(locked: TestClient) -> None:
    assert locked.get("/health").json() == {"status": "ok"}
    probed = locked.get("/ready")
    assert (probed.status_code, probed.json(), probed.headers["retry-after"]) == (503, {"ready": False}, "2")
