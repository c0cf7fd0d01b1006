"""What becomes of one order when replicas fail: tried again or told, and nothing shown twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray.exceptions import RayActorError

from serve.engine.request import ImageRequest, Times
from serve.http import dispatch
from serve.http.errors import ApiError
from serve.replica.messages import EncodedImage, ImageOrder, Preview, Refusal

ORDER = ImageOrder("base", ImageRequest("a dog", 1), "png", 10.0, previews=2)
DRAWN = EncodedImage(b"picture", Times(0, 0, 0, 0, 0, 1), "")
FAULT = Refusal(503, "engine_fault", "a replica failed")


class Handle:
    """A handle of Serve whose replicas answer what they are told to, one after another."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.draw = self.draw_stream = self

    def options(self, **_: Any) -> Handle:
        return self

    def remote(self, _: ImageOrder) -> Any:
        return Response(self._answers.pop(0))


class Response:
    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __await__(self) -> Any:
        return self._drawn().__await__()

    async def _drawn(self) -> Any:
        return self._answer

    async def __aiter__(self) -> AsyncIterator[Any]:
        for event in self._answer:
            if isinstance(event, Exception):
                raise event
            yield event

    def cancel(self) -> None:
        pass


def _draw(handle: Handle, **more: Any) -> EncodedImage:
    return asyncio.run(dispatch.draw(handle, ORDER, retries=1, on_retry=lambda: None, **more))


def test_a_fault_is_tried_again_and_then_told_as_the_servers() -> None:
    assert _draw(Handle(FAULT, DRAWN)) == DRAWN
    with pytest.raises(ApiError) as reported:
        _draw(Handle(FAULT, FAULT))
    assert (reported.value.status, reported.value.code, reported.value.message) == (
        503,
        "engine_fault",
        "a replica failed",
    )
    assert reported.value.headers["Retry-After"]


def test_a_refusal_names_the_field_and_is_not_tried_again() -> None:
    with pytest.raises(ApiError) as reported:
        _draw(Handle(Refusal(400, "invalid_value", "prompt has 80 tokens", "prompt")))
    assert (reported.value.status, reported.value.envelope["error"]["param"]) == (400, "prompt")


def test_no_preview_is_shown_twice_when_the_replica_dies_on_the_way() -> None:
    first, second = Preview(b"a", 1, 3), Preview(b"b", 2, 3)
    shown: list[Preview] = []
    handle = Handle([first, RayActorError()], [first, second, DRAWN])
    assert _draw(handle, on_preview=shown.append) == DRAWN
    assert shown == [first, second]
