"""A variant whose replicas Ray Serve adds under load: admission follows, and no request is lost."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from ray import serve

from serve.config import ServeConfig
from serve.local import APPLICATION
from tests.serve.client import Client, Load, describe, wait_for

pytestmark = pytest.mark.slow
GROUP = "weights-whole"


def _running() -> int:
    found = serve.status().applications[APPLICATION].deployments[GROUP]
    return int(found.replica_states.get("RUNNING", 0))


def test_replicas_and_admission_follow_the_load(client: Client, config: ServeConfig) -> None:
    heavy: dict[str, Any] = {"model": "whole", "num_inference_steps": 20, "size": "128x128"}
    one = config.queue.images  # what is admitted for one replica
    wait_for(lambda: _running() == 1)
    assert {reply.status for reply in client.all(*[heavy] * (2 * one))} == {200, 429}

    load = Load(client)
    with load.at(4, lambda _: heavy):
        wait_for(lambda: _running() == 2, 120)
        ready = requests.get(f"{client.url}/ready", timeout=30)
        assert (ready.status_code, ready.json()["variants"]["whole"]) == (200, "ready")
    assert not load.errors
    assert load.statuses() <= {200, 429}
    assert len(describe(2, GROUP)) == 2
    # The ingress counts replicas every 2 s.
    wait_for(lambda: {reply.status for reply in client.all(*[heavy] * (2 * one))} == {200}, 30)

    light = Load(client)
    with light.at(0.5, lambda _: {"model": "whole"}):
        wait_for(lambda: _running() == 1, 120)
    assert not light.errors
    assert light.statuses() == {200}
