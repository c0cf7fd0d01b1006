"""What an ingress says of its groups, and so of requests for their models: starting, ready, failed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from serve.config import ServeConfig
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
