"""What an ingress says of its groups, and so of requests for their models: starting, ready, failed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from serve.config import ServeConfig, override
from serve.http.auth import Keys
from serve.http.endpoint import Endpoint
from serve.http.errors import ApiError
from serve.replica.placement import Placement, ReplicaGroup, VariantPlacement

LAYOUT = Placement(
    64,
    {
        "weights": ReplicaGroup(adapters={"dog": "/dog", "toy": "/toy"}, variants=["base", "dog", "toy"]),
        "weights-melted": ReplicaGroup(adapters={"melted": "/m"}, fused="melted", variants=["melted"]),
    },
    {
        "base": VariantPlacement("base", group="weights"),
        "dog": VariantPlacement("lora", group="weights"),
        "toy": VariantPlacement("lora", group="weights"),
        "melted": VariantPlacement("lora", group="weights-melted"),
    },
)
FAILED = DeploymentUnavailableError(DeploymentID("weights"))
SILENT = RuntimeError("not yet")


class Handle:
    """A handle of Serve whose group always says the same."""

    def __init__(self, said: dict[str, Any] | Exception) -> None:
        self._said, self.describe = said, self

    async def remote(self) -> dict[str, Any]:
        if isinstance(self._said, Exception):
            raise self._said
        return self._said


async def _endpoint(*said: dict[str, Any] | Exception) -> Endpoint:
    handles = {group: Handle(words) for group, words in zip(LAYOUT.groups, said, strict=True)}
    endpoint = Endpoint(ServeConfig(), LAYOUT, handles, Keys([]))
    await asyncio.sleep(0.05)
    endpoint.health.stop()
    return endpoint


@pytest.mark.parametrize(
    ("shared", "melted", "ready"),
    [
        ({}, {}, True),
        ({}, FAILED, True),
        ({}, SILENT, False),
        (FAILED, SILENT, False),
        (FAILED, FAILED, False),
    ],
)
def test_ready_means_that_something_can_be_drawn(shared: Any, melted: Any, ready: bool) -> None:
    assert asyncio.run(_endpoint(shared, melted)).health.ready is ready


def test_a_model_whose_replicas_could_not_start_is_stopped_and_not_starting() -> None:
    endpoint = asyncio.run(_endpoint(FAILED, SILENT))
    assert [model.state for model in endpoint.health.models()] == ["stopped", "stopped", "stopped", "starting"]
    for model, code, said in (
        ("dog", "model_stopped", "model 'dog' is stopped: its replicas could not be started"),
        ("melted", "starting", "model 'melted' is starting"),
    ):
        with pytest.raises(ApiError) as reported:
            endpoint.take(b'{"prompt": "a dog", "model": "%s"}' % model.encode())
        assert (reported.value.status, reported.value.code) == (503, code)
        assert said in reported.value.message
        assert reported.value.headers["Retry-After"]


def test_models_say_what_combines_with_them_and_who_shares_their_weights() -> None:
    endpoint = asyncio.run(_endpoint({"stopped": {"toy": "it is broken"}}, {}))
    reported = {model.id: (model.adapters, model.group) for model in endpoint.health.models()}
    assert reported == {
        "base": (["dog"], "weights"),
        "dog": (["dog"], "weights"),
        "toy": (["dog"], "weights"),
        "melted": ([], "weights-melted"),
    }


class Counted(Handle):
    """A handle that counts how often its replicas are asked."""

    asked = 0

    async def remote(self) -> dict[str, Any]:
        self.asked += 1
        return await super().remote()


def _scaled(low: int) -> Placement:
    scaling = {"autoscaling_config": {"min_replicas": low, "max_replicas": 3}}
    group = ReplicaGroup(variants=["base"], deployment_config=scaling)
    return Placement(64, {"weights": group}, {"base": VariantPlacement("base", group="weights")})


def test_admission_follows_the_number_of_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.http.health._PERIOD_S", 0.01)
    running = {"weights": 1}

    async def count() -> dict[str, int]:
        return dict(running)

    async def main() -> None:
        config = override(ServeConfig(), {"limits.n": 1, "queue.images": 2})
        endpoint = Endpoint(config, _scaled(1), {"weights": Handle({})}, Keys([]), count=count)
        await asyncio.sleep(0.05)
        body = b'{"prompt": "a dog", "num_inference_steps": 1}'

        def admitted() -> int:
            for number in range(100):
                try:
                    endpoint.take(body)
                except ApiError as problem:
                    assert problem.status == 429
                    return number
            raise AssertionError("nothing was turned away")

        assert admitted() == 2
        for number, more in ((3, 4), (9, 0), (1, 0)):  # nine: an update's extra replicas count no more than the most
            running["weights"] = number
            await asyncio.sleep(0.05)
            assert admitted() == more
        endpoint.health.stop()

    asyncio.run(main())


def test_a_group_that_may_have_no_replica_is_not_kept_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.http.health._PERIOD_S", 0.01)
    running: dict[str, int] = {}

    async def count() -> dict[str, int]:
        return dict(running)

    async def main() -> None:
        handle = Counted({"hashes": {"base": "abc"}})
        watch = Endpoint(ServeConfig(), _scaled(0), {"weights": handle}, Keys([]), count=count).health
        await asyncio.sleep(0.05)
        assert (handle.asked, watch.ready, watch.replicas("weights")) == (0, True, 1)
        for times in (1, 2):  # once for each time that a replica came
            running["weights"] = 1
            await asyncio.sleep(0.05)
            assert handle.asked == times
            running["weights"] = 0
            await asyncio.sleep(0.05)
        assert watch.models()[0].artifact == "abc"
        watch.stop()

    asyncio.run(main())
