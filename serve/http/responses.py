"""What a request for images gets: the response's body and headers, or the events of a stream."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from serve.http.endpoint import GeneratedImages
from serve.http.errors import ApiError
from serve.http.protocol import Usage
from serve.http.request_parser import ParsedRequest
from serve.replica.messages import EncodedImage, Preview


def body(asked: ParsedRequest, answer: GeneratedImages, links: Sequence[str] | None = None) -> dict[str, Any]:
    """The body of a response, as `ImagesResponse` describes it. links: the images' addresses, instead of the images."""
    places = links or map(_base64, answer.images)
    data = [
        {"url" if links else "b64_json": place, "seed": request.seed}
        for place, request in zip(places, asked.requests, strict=True)
    ]
    return {
        "created": int(time.time()),
        "model": asked.model,
        "background": "opaque",
        "output_format": asked.output_format,
        "size": asked.size,
        "data": data,
        "usage": Usage().model_dump(),
        "sdxl_ray": _extras(answer),
    }


def _extras(answer: GeneratedImages) -> dict[str, Any]:
    first = answer.images[0]
    return {
        "artifact": first.artifact,
        "adapters": first.adapters,
        "truncated": {name: vars(text) for name, text in first.truncated.items()},
        "times": [{name: round(ms, 3) for name, ms in vars(p.times).items()} for p in answer.images],
    }


def headers(asked: ParsedRequest, answer: GeneratedImages) -> dict[str, str]:
    """Headers: hashes of the model and of the adapters beside it, the slowest image's stages, the whole request."""
    first = answer.images[0]
    slowest = max((image.times for image in answer.images), key=lambda times: times.total_ms)
    stages = {name: getattr(slowest, f"{name}_ms") for name in ("queue", "text", "denoise", "decode")}
    return {
        "x-sdxl-ray-artifact": first.artifact,
        "x-sdxl-ray-adapters": " ".join(
            f"{name}={hash_}" for name, hash_ in first.adapters.items() if name != asked.model
        ),
        "x-sdxl-ray-seed": str(asked.requests[0].seed),
        **{f"x-sdxl-ray-{name}-ms": f"{ms:.3f}" for name, ms in stages.items()},
        "x-sdxl-ray-total-ms": f"{answer.total_ms:.3f}",
        "x-sdxl-ray-batch": f"{slowest.batch_mean:.2f}",
    }


async def events(
    asked: ParsedRequest, task: asyncio.Task[GeneratedImages], previews: asyncio.Queue[Preview]
) -> AsyncIterator[bytes]:
    """OpenAI's events: partial images, then the image; or an error, since the status has been sent."""
    common = {
        "created_at": int(time.time()),
        "output_format": asked.output_format,
        "size": asked.size,
        "background": asked.background,
        "quality": asked.quality,
    }
    sent = 0
    try:
        while not task.done():
            look = asyncio.create_task(previews.get())
            await asyncio.wait({task, look}, return_when=asyncio.FIRST_COMPLETED)
            if not look.done():
                look.cancel()
                break
            preview = look.result()
            extras = {"step": preview.step, "steps": preview.steps}
            data = {"b64_json": _base64(preview), "partial_image_index": sent, **common, "sdxl_ray": extras}
            yield _event("image_generation.partial_image", data)
            sent += 1
        answer = await task
        data = {"b64_json": _base64(answer.images[0]), **common, "usage": Usage().model_dump(), "model": asked.model}
        data |= {"seed": asked.requests[0].seed, "sdxl_ray": {**_extras(answer), "total_ms": answer.total_ms}}
        yield _event("image_generation.completed", data)
    except ApiError as problem:
        yield _event("error", problem.envelope)
    finally:
        task.cancel()


def _event(kind: str, data: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()


def _base64(image: EncodedImage | Preview) -> str:
    return base64.b64encode(image.data).decode("ascii")
