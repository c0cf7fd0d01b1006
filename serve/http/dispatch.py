"""An image from a replica, whatever happens to the replica or its device.

Serve fails exactly the request that was in flight when a replica dies, and does not try it again. Here it is tried
again: its seed was fixed before, so the client gets the image it would have got. When the client goes, or the time
is over, the call is cancelled and the replica's engine frees its place within a step.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError, TaskCancelledError, WorkerCrashedError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)

from serve.http.errors import ApiError, busy
from serve.replica.messages import EncodedImage, ImageOrder, Preview, Refusal

#: What a call raises when its replica has gone; RequestCancelledError when a replica was stopped before it was done.
GONE = (
    RayActorError,
    ObjectLostError,
    WorkerCrashedError,
    ReplicaUnavailableError,
    RequestCancelledError,
    TaskCancelledError,
)
#: Refusals that say nothing of the image: another replica may draw it.
_ELSEWHERE = ("restarting", "engine_fault")
_AFTER_S = 2.0
_BREATH_S = 0.2


async def draw(
    handle: Any,
    order: ImageOrder,
    *,
    retries: int,
    on_retry: Callable[[], None],
    on_preview: Callable[[Preview], None] | None = None,
) -> EncodedImage:
    """Order one image. Raises ApiError; CancelledError when the caller is cancelled, after cancelling the order."""
    deadline = time.monotonic() + order.seconds
    failure = busy("restarting", f"the replica of model {order.variant!r} died {retries + 1} times; it is restarted", 5)
    show = on_preview and _once_each(on_preview)
    for attempt in range(retries + 1):
        if attempt:
            on_retry()
        left = deadline - time.monotonic()
        try:
            async with asyncio.timeout(left):
                answer = await _attempt(handle, replace(order, seconds=left), show)
        except TimeoutError:
            raise _late(order) from None
        except BackPressureError:
            raise busy("queue_full", "the replicas have too much to do", _AFTER_S) from None
        except DeploymentUnavailableError as error:
            raise busy("restarting", f"model {order.variant!r} could not be started: {error}", 60) from None
        except GONE:
            continue
        except asyncio.CancelledError:
            # Ray says so too when the replica was stopped under the call; nobody has asked for that here.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # When a client goes, Serve cancels this call before it cancels this task: wait, and end here then.
            await asyncio.sleep(_BREATH_S)
            continue
        if isinstance(answer, Refusal):
            after = _AFTER_S if answer.status == 503 else None
            problem = ApiError(answer.status, answer.message, answer.code, answer.param, after)
            if answer.code not in _ELSEWHERE:
                raise problem
            failure = problem if answer.code == "engine_fault" else failure
            continue
        return answer
    raise failure


def _once_each(on_preview: Callable[[Preview], None]) -> Callable[[Preview], None]:
    """The same, without the previews that a second attempt draws again."""
    shown = 0

    def fresh(preview: Preview) -> None:
        nonlocal shown
        if preview.step > shown:
            shown = preview.step
            on_preview(preview)

    return fresh


async def _attempt(handle: Any, order: ImageOrder, show: Callable[[Preview], None] | None) -> EncodedImage | Refusal:
    return await (_once(handle, order) if show is None else _stream(handle, order, show))


async def _once(handle: Any, order: ImageOrder) -> EncodedImage | Refusal:
    response = handle.draw.remote(order)
    try:
        answer: EncodedImage | Refusal = await response
        return answer
    except asyncio.CancelledError:
        response.cancel()
        raise


async def _stream(handle: Any, order: ImageOrder, on_preview: Callable[[Preview], None]) -> EncodedImage | Refusal:
    response = handle.options(stream=True).draw_stream.remote(order)
    events: AsyncIterator[Preview | EncodedImage | Refusal] = response.__aiter__()
    try:
        async for event in events:
            if not isinstance(event, Preview):
                return event
            on_preview(event)
    except asyncio.CancelledError:
        response.cancel()
        raise
    raise ApiError(500, "the replica ended its stream without an image", "not_drawn")


def _late(order: ImageOrder) -> ApiError:
    return busy("deadline_passed", f"no image of model {order.variant!r} in time", _AFTER_S)
