"""S1: more than the endpoint can do. What it accepts stays quick, what it does not is told when to come back."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import pytest

from serve.config import ServeConfig
from tests.serve.client import Client, Load, Reply

#: `make soak` runs a minute of each.
SECONDS = float(os.environ.get("SDXL_RAY_SOAK_S", "5"))
#: Heavy enough for shedding to cost little beside it: client, proxy and ingress share the cores with the replicas.
BODY: dict[str, Any] = {"num_inference_steps": 50 if SECONDS > 30 else 20, "size": "128x128"}
pytestmark = pytest.mark.slow


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, round(share * len(values)))]


def _capacity(client: Client, wide: int) -> float:
    """Pictures a second with `wide` clients that ask together, again and again."""
    start = time.monotonic()
    replies: list[Reply] = []
    while time.monotonic() - start < SECONDS / 2:
        replies += client.all(*[BODY] * wide)
    assert {reply.status for reply in replies} == {200}
    return len(replies) / (time.monotonic() - start)


@pytest.mark.parametrize("times", [pytest.param(2, marks=pytest.mark.exhaustive), 10])
def test_overload_is_shed_and_what_is_accepted_is_quick(client: Client, config: ServeConfig, times: int) -> None:
    admitted = config.queue.pictures * config.replicas.count
    capacity = _capacity(client, admitted)
    # What comes beside what is drawn fills the queue twice over.
    seconds = max(SECONDS, 2 * admitted / ((times - 1) * capacity))
    load = Load(client)
    with load.at(times * capacity, lambda _: BODY):
        time.sleep(seconds)
    drawn = [reply for reply in load.replies if reply.status == 200]
    shed = [reply for reply in load.replies if reply.status != 200]
    assert not load.errors
    assert load.statuses() <= {200, 429, 503}
    assert shed
    assert all(int(reply.headers["Retry-After"]) >= 1 for reply in shed)
    # Everything that is admitted is drawn at the pace of the capacity: who comes last waits for all of it.
    bound = 1.5 * admitted / capacity
    p99 = _percentile([reply.seconds for reply in drawn], 0.99)
    figures = f"{times}x of {capacity:.1f}/s: {len(drawn)} drawn, {len(shed)} shed, p99 {p99:.2f} s of {bound:.2f} s"
    logging.getLogger(__name__).info(figures)
    assert p99 <= bound
    assert len(drawn) >= 0.9 * capacity * seconds
    time.sleep(10 if SECONDS > 30 else 1)
    after = client.draw(**BODY)
    assert after.status == 200
    assert after.seconds < bound
