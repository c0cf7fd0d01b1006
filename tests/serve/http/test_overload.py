"""Overload (S1 in RESULTS.md): accepted requests stay quick, the others get 429 with Retry-After."""

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
pytestmark = [pytest.mark.slow, pytest.mark.shares("url")]


def _percentile(values: list[int], share: float) -> int:
    return sorted(values)[min(len(values) - 1, round(share * len(values)))]


def _finished_meanwhile(drawn: list[Reply]) -> list[int]:
    """How many images were finished while each was waited for, itself included: its latency in units of service.

    In seconds it would measure the machine, whose speed changes by half within a minute where others share it.
    """
    return [sum(one.ended - one.seconds < other.ended <= one.ended for other in drawn) for one in drawn]


def _capacity(client: Client, wide: int) -> float:
    """Images a second with `wide` clients that ask together, again and again."""
    start = time.monotonic()
    replies: list[Reply] = []
    while time.monotonic() - start < SECONDS / 2:
        replies += client.all(*[BODY] * wide)
    assert {reply.status for reply in replies} == {200}
    return len(replies) / (time.monotonic() - start)


@pytest.mark.parametrize("times", [pytest.param(2, marks=pytest.mark.exhaustive), 10])
def test_overload_is_shed_and_what_is_accepted_is_quick(client: Client, config: ServeConfig, times: int) -> None:
    admitted = config.queue.images * config.deployment_config["num_replicas"]
    before = _capacity(client, admitted)
    # What comes beside what is drawn fills the queue twice over.
    seconds = max(SECONDS, 2 * admitted / ((times - 1) * before))
    load = Load(client)
    with load.at(times * before, lambda _: BODY):
        time.sleep(seconds)
    drawn = [reply for reply in load.replies if reply.status == 200]
    shed = [reply for reply in load.replies if reply.status != 200]
    assert not load.errors
    assert load.statuses() <= {200, 429, 503}
    assert shed
    assert all(int(reply.headers["Retry-After"]) >= 1 for reply in shed)
    time.sleep(10 if SECONDS > 30 else 1)
    after = client.draw(**BODY)
    assert after.status == 200
    capacity = min(before, _capacity(client, admitted))
    waits = _finished_meanwhile(drawn)
    p99, slowest = _percentile(waits, 0.99), max(reply.seconds for reply in drawn)
    logging.getLogger(__name__).info(
        f"{times}x of {capacity:.2f}/s for {seconds:.0f} s: {len(drawn)} drawn, {len(shed)} shed; "
        f"{p99} finished while one waits (p99) of {1.5 * admitted:.0f}; slowest {slowest:.1f} s"
    )
    # Everything that is admitted is drawn at the pace of the capacity: who comes last waits for all of it.
    assert p99 <= 1.5 * admitted
    assert len(drawn) >= 0.9 * capacity * seconds
    assert after.seconds < admitted / capacity
