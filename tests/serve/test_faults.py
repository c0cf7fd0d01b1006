"""S2 and S3: replicas that are replaced, that cannot start, and that die, under load. No client sees any of it."""

from __future__ import annotations

import os
import random
import time
from typing import Any

import pytest

from serve.config import ServeConfig, override
from tests.serve.client import QUICK, Client, Load, describe, replicas, wait_for

#: `make soak` runs a minute, with a kill every five seconds.
SECONDS = float(os.environ.get("SDXL_RAY_SOAK_S", "8"))
PAUSE_S = 5.0 if SECONDS > 30 else 4.0
LEAST = 200 if SECONDS > 30 else 20
pytestmark = pytest.mark.slow


def _body(index: int) -> dict[str, Any]:
    return {**QUICK, "model": ("base", "round")[index % 2], "seed": index % 4, "num_inference_steps": 8}


def _check(load: Load, least: int) -> None:
    assert not load.errors
    assert load.statuses() == {200}, [reply.body for reply in load.replies if reply.status != 200][:3]
    assert len(load.replies) >= least


def test_a_failing_update_and_an_update_lose_no_request(client: Client, config: ServeConfig) -> None:
    """New replicas that cannot start leave old ones serving; new ones that can replace them one by one."""
    from serve.local import deploy, deployed

    before = {process.pid for process in replicas()}
    load = Load(client)
    with load.at(2.5, _body):
        deploy(override(config, {"engine.device": "cuda:7", "replicas.start_attempts": 1}))
        wait_for(lambda: deployed() == "DEPLOY_FAILED", 240)
        assert before & {process.pid for process in replicas()}
        failing = len(load.replies)
        deploy(override(config, {"engine.cached_prompts": 32}))
        wait_for(lambda: deployed() == "RUNNING" and not before & {p.pid for p in replicas()}, 240)
        wait_for(lambda: len(load.replies) >= LEAST, 240)
    assert 0 < failing < len(load.replies)
    _check(load, LEAST)
    assert len(describe(2)) == 2


def test_replicas_that_die_cost_no_client_anything(client: Client) -> None:
    """Pictures under way on a dead replica are drawn again elsewhere, and are the same to the last byte."""
    expected = [client.draw(**_body(index)).data for index in range(4)]
    load = Load(client)
    chance = random.Random(0)
    killed: list[int] = []
    with load.at(4, _body):
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            time.sleep(PAUSE_S)
            alive = replicas()
            if alive:
                victim = chance.choice(alive)
                killed.append(victim.pid)
                victim.kill()
    _check(load, int(2 * SECONDS))
    assert len(killed) >= 2
    seeds = [(reply.body["model"], reply.body["data"][0]["seed"]) for reply in load.replies]
    wanted = {(_body(index)["model"], _body(index)["seed"]): expected[index] for index in range(4)}
    assert all(reply.data == wanted[seed] for reply, seed in zip(load.replies, seeds, strict=True))
    wait_for(lambda: len(replicas()) == 2 and len(describe(2)) == 2, 120)
