"""One request from its body to its images: checked, admitted, drawn by replicas, counted and logged.

It knows no HTTP; `routes.py` does that part.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serve.config import ServeConfig
from serve.deployment_config import replica_bounds
from serve.engine.request import ImageRequest
from serve.http import dispatch
from serve.http.admission import AdmissionLedger, share
from serve.http.auth import Keys
from serve.http.errors import ApiError, busy
from serve.http.health import ReplicaHealth
from serve.http.image_links import ImageLinks
from serve.http.metrics import Meter
from serve.http.request_parser import ParsedRequest, RequestParser
from serve.replica.counts import CountReplicas
from serve.replica.messages import EncodedImage, ImageOrder, Preview
from serve.replica.placement import Placement

_LOG = logging.getLogger("ray.serve")
_START_S, _STOPPED_S = 5.0, 60.0


@dataclass(frozen=True)
class GeneratedImages:
    """Images in the order of their seeds, and milliseconds of the whole request on the server."""

    images: list[EncodedImage]
    total_ms: float


class Endpoint:
    """What an ingress knows and does."""

    def __init__(
        self,
        config: ServeConfig,
        layout: Placement,
        handles: dict[str, Any],
        keys: Keys,
        images: Any = None,
        count: CountReplicas | None = None,
    ) -> None:
        """images: handle of the store of images; None where none are kept. count: as for `ReplicaHealth`."""
        self.config = config
        self.keys = keys
        self.parser = RequestParser(config.limits, layout, links=images is not None)
        self.images = ImageLinks(images, config.images.keep_seconds)
        self.health = ReplicaHealth(layout, handles, count)
        self.meter = Meter()
        self._handles = handles
        self._ledgers = {group: AdmissionLedger(*self._most(group)) for group in handles}

    def take(self, raw: bytes) -> ParsedRequest:
        """Check a body and admit it; what is admitted must be given to `start` at once. Raises ApiError."""
        try:
            asked = self.parser.take(raw)
        except ApiError as problem:
            self.failed(None, problem)
            raise
        try:
            if (failed := self.health.failed(asked.group)) is not None:
                message = f"model {asked.model!r} is stopped: {failed}"
                raise ApiError(503, message, "model_stopped", "model", retry_after_s=_STOPPED_S)
            if self.health.starting(asked.group):
                raise busy("starting", f"model {asked.model!r} is starting", _START_S)
            self._ledgers[asked.group].resize(*self._most(asked.group))
            self._ledgers[asked.group].admit(len(asked.requests), asked.work)
        except ApiError as problem:
            self.failed(asked, problem)
            raise
        self._gauge(asked.group)
        return asked

    def start(
        self, asked: ParsedRequest, on_preview: Callable[[Preview], None] | None = None
    ) -> asyncio.Task[GeneratedImages]:
        """Draw what was just admitted. The task raises ApiError; when it is cancelled, so are its images.

        What was admitted is given back by callbacks, since a task that is cancelled early never runs its `finally`.
        """
        tasks = [asyncio.create_task(self._one(asked, request, on_preview)) for request in asked.requests]
        for task in tasks:
            task.add_done_callback(functools.partial(self._release, asked))
        whole = asyncio.create_task(self._all(asked, tasks))
        whole.add_done_callback(lambda _: [task.cancel() for task in tasks])
        return whole

    def _most(self, group: str) -> tuple[int, int]:
        """Images, and their work, that this ingress may have under way at a group with its present replicas."""
        replicas = self.health.replicas(group)
        ingresses = replica_bounds(self.config.ingress.deployment_config)[1]
        queue = self.config.queue
        return share(queue.images * replicas, ingresses), share(queue.work * replicas, ingresses)

    async def _all(self, asked: ParsedRequest, tasks: list[asyncio.Task[EncodedImage]]) -> GeneratedImages:
        start = time.monotonic()
        try:
            images = await asyncio.gather(*tasks)
        except ApiError as problem:
            self.failed(asked, problem)
            raise
        except Exception as error:
            _LOG.exception("an image failed")
            failure = ApiError(500, f"the server failed: {type(error).__name__}; its log says more", "internal_error")
            self.failed(asked, failure)
            raise failure from None
        except asyncio.CancelledError:
            self._note(asked, 499, (time.monotonic() - start) * 1e3, code="client_gone")
            raise
        answer = GeneratedImages(images, (time.monotonic() - start) * 1e3)
        self.meter.observe("sdxl_ray_request_ms", answer.total_ms, variant=asked.model)
        self._note(asked, 200, answer.total_ms)
        return answer

    async def _one(
        self, asked: ParsedRequest, request: ImageRequest, on_preview: Callable[[Preview], None] | None
    ) -> EncodedImage:
        timeout_s = self.config.queue.timeout_s
        order = ImageOrder(asked.model, request, asked.output_format, timeout_s, asked.previews, asked.compression)
        return await dispatch.draw(
            self._handles[asked.group],
            order,
            retries=self.config.queue.retries,
            on_retry=lambda: self.meter.count("sdxl_ray_retries", variant=asked.model),
            on_preview=on_preview,
        )

    def _release(self, asked: ParsedRequest, task: asyncio.Task[EncodedImage]) -> None:
        drawn = not task.cancelled() and task.exception() is None
        self._ledgers[asked.group].release(1, asked.work / len(asked.requests), drawn=drawn)
        self._gauge(asked.group)

    def failed(self, asked: ParsedRequest | None, problem: ApiError) -> None:
        """Count and log a request that gets no image."""
        if problem.status in (429, 503):
            self.meter.count("sdxl_ray_shed", variant=asked.model if asked else "", reason=problem.code)
        self._note(asked, problem.status, 0.0, code=problem.code)

    def _gauge(self, group: str) -> None:
        ledger = self._ledgers[group]
        self.meter.set("sdxl_ray_under_way", ledger.images, group=group)
        self.meter.set("sdxl_ray_work", ledger.work, group=group)

    def _note(self, asked: ParsedRequest | None, status: int, total_ms: float, **more: Any) -> None:
        """One line of JSON; the words of a prompt only when the configuration says so."""
        self.meter.count("sdxl_ray_requests", variant=asked.model if asked else "", status=str(status))
        line: dict[str, Any] = {"event": "images", "status": status, "ms": round(total_ms, 1), **more}
        if asked is not None:
            first = asked.requests[0]
            line |= {
                "model": asked.model,
                "adapters": [use.name for use in first.adapters],
                "n": len(asked.requests),
                "size": asked.size,
                "steps": first.num_inference_steps,
                "seed": first.seed,
            }
            if self.config.log_prompts:
                line |= {"prompt": first.prompt, "negative_prompt": first.negative_prompt}
        _LOG.info(json.dumps(line))
