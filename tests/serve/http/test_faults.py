"""S2 and S3: replicas that are replaced, that cannot start, and that die, under load. No client sees any of it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from serve.config import ServeConfig, override
from tests.serve.client import QUICK, Client, Load, describe, replicas, wait_for
from tests.serve.engine.plain import differences

#: `make soak` runs a minute, with a kill every five seconds.
SECONDS = float(os.environ.get("SDXL_RAY_SOAK_S", "8"))
PAUSE_S = 5.0 if SECONDS > 30 else 4.0
LEAST = 200 if SECONDS > 30 else 20
#: So few that what waits while a replica is away is not more than the queue holds, also where others use the cores.
RATE = 1.5 if SECONDS > 30 else 0.75
pytestmark = [pytest.mark.slow, pytest.mark.shares("url")]


@pytest.fixture(scope="module", autouse=True)
def _serving_again(url: str, config: ServeConfig) -> Iterator[None]:
    """However a test ends, later ones find two replicas that serve."""
    from serve.local import deploy, deployed

    yield
    if deployed() not in ("RUNNING", "DEPLOYING"):
        deploy(config)
    _wait_until_whole()


def _wait_until_whole() -> None:
    from serve.local import deployed

    wait_for(lambda: deployed() == "RUNNING" and len(replicas()) == 2, 240)
    assert len(describe(2)) == 2


def _body(index: int) -> dict[str, Any]:
    return {**QUICK, "model": ("base", "round")[index % 2], "seed": index % 4}


def _check(load: Load, least: int) -> None:
    assert not load.errors
    assert load.statuses() == {200}, [reply.body for reply in load.replies if reply.status != 200][:3]
    assert len(load.replies) >= least


def test_an_image_on_a_replica_that_dies_is_drawn_again_to_the_last_byte(client: Client) -> None:
    """Alone, since an image's companions in a batch may change its last bits."""
    body = {**_body(1), "num_inference_steps": 50, "size": "128x128"}
    _wait_until_whole()
    wait_for(lambda: not any(said["engine"]["in_flight"] for said in describe(2).values()))
    expected = client.draw(**body).data
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.draw, **body)
        drawing: list[int] = []

        def begun() -> bool:
            drawing[:] = [pid for pid, said in describe(2).items() if said["engine"]["in_flight"]]
            return bool(drawing)

        wait_for(begun)
        psutil.Process(drawing[0]).kill()
        assert not asked.done()
        reply = asked.result()
    assert reply.status == 200, reply.body
    assert reply.data == expected


@pytest.mark.exhaustive  # one killed replica is in the test above; `make soak` kills for a minute
def test_replicas_that_die_cost_no_client_anything(client: Client, config: ServeConfig) -> None:
    """Every client gets its image, to within the one level that companions in a batch may change."""
    from serve.local import deploy

    if SECONDS > 30:  # one dies as soon as it has started, so nobody draws for long: what waits must have room
        deploy(override(config, {"queue.images": 32}))
    _wait_until_whole()
    expected = [client.draw(**_body(index)).images for index in range(4)]
    load = Load(client)
    chance = random.Random(0)
    killed: list[int] = []
    with load.at(0.75, _body):  # now and then nobody draws
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            time.sleep(PAUSE_S)
            alive = replicas()
            if alive:
                victim = chance.choice(alive)
                killed.append(victim.pid)
                victim.kill()
    _check(load, int(SECONDS / 2))
    assert len(killed) >= 2
    for reply in load.replies:
        assert max(differences(reply.images, expected[reply.body["data"][0]["seed"]])) <= 1


def test_an_update_loses_no_request(client: Client, config: ServeConfig) -> None:
    """New replicas that can start replace old ones one by one."""
    _wait_until_whole()
    before = {process.pid for process in replicas()}
    load = Load(client)
    with load.at(RATE, _body):
        _replace(before, override(config, {"engine.cached_prompts": 32}))
        wait_for(lambda: len(load.replies) >= LEAST, 240)
    _check(load, LEAST)


@pytest.mark.exhaustive  # over a minute
def test_an_update_that_cannot_start_loses_no_request(client: Client, config: ServeConfig) -> None:
    """Its replicas leave the old ones serving, and the next update replaces those."""
    from serve.local import deploy, deployed

    _wait_until_whole()
    before = {process.pid for process in replicas()}
    load = Load(client)
    with load.at(RATE, _body):
        deploy(override(config, {"engine.device": "cuda:7", "deployment_config.max_constructor_retry_count": 1}))
        wait_for(lambda: deployed() == "DEPLOY_FAILED", 240)
        assert before & {process.pid for process in replicas()}
        failing = len(load.replies)
        _replace(before, override(config, {"engine.cached_prompts": 48}))
        wait_for(lambda: len(load.replies) >= LEAST, 240)
    assert 0 < failing < len(load.replies)
    _check(load, LEAST)


def _replace(before: set[int], config: ServeConfig) -> None:
    """Update, until none of the processes of before is left."""
    from serve.local import deploy, deployed

    deploy(config)
    wait_for(lambda: deployed() == "RUNNING" and not before & {p.pid for p in replicas()}, 240)
