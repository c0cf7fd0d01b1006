"""The HTTP side: paths, headers, bodies and their limits, server-sent events, and the OpenAPI description."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sdxl_ray import __version__
from sdxl_ray.errors import nearest
from serve.asking import Asked
from serve.endpoint import Answer, Endpoint
from serve.order import Picture, Preview
from serve.problem import ErrorEnvelope, Problem
from serve.protocol import ImagesResponse, Model, Models

#: A client that has not sent its body by then is not going to.
_BODY_S = 30.0
_GENERATIONS = "/v1/images/generations"
#: A server-sent event, as OpenAPI describes one.
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["event", "data"],
}
_PAGE = {"/": "index.html", "/ui/style.css": "style.css", "/ui/page.js": "page.js", "/ui/api.js": "api.js"}
_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
#: The page runs its own files and nothing else, and talks to nobody but this server.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ALWAYS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


def build(endpoint: Endpoint) -> FastAPI:
    """The application of one endpoint."""
    # FastAPI's own pages of documentation load scripts from elsewhere.
    app = FastAPI(title="sdxl-ray", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorEnvelope} for status in (400, 401, 404, 408, 413, 415, 422, 429, 500, 503)
    }

    @app.post(_GENERATIONS, response_model=ImagesResponse, responses=errors, operation_id="createImage")
    async def generations(request: Request) -> Response:
        """Draw pictures."""
        try:
            endpoint.keys.require(request.headers.get("authorization"))
            raw = await _body(request, endpoint.config.limits.body_bytes)
        except Problem as problem:
            endpoint.failed(None, problem)
            raise
        asked = endpoint.take(raw)
        previews: asyncio.Queue[Preview] = asyncio.Queue()
        task = endpoint.start(asked, previews.put_nowait if asked.previews else None)
        if asked.stream:
            headers = {**_ALWAYS, "x-sdxl-ray-seed": str(asked.requests[0].seed)}
            return StreamingResponse(_events(asked, task, previews), media_type="text/event-stream", headers=headers)
        try:
            answer = await task
        finally:
            task.cancel()
        return JSONResponse(_response(asked, answer), headers={**_ALWAYS, **_times(asked, answer)})

    @app.get("/v1/models", response_model=Models, responses={401: errors[401]}, operation_id="listModels")
    async def models(request: Request) -> Models:
        """Every variant, those that could not start too."""
        endpoint.keys.require(request.headers.get("authorization"))
        return Models(data=endpoint.watch.models())

    @app.get("/v1/models/{model}", response_model=Model, responses={s: errors[s] for s in (401, 404)})
    async def model(request: Request, model: str) -> Model:
        """One variant."""
        endpoint.keys.require(request.headers.get("authorization"))
        known = {entry.id: entry for entry in endpoint.watch.models()}
        if model not in known:
            raise Problem(404, f"no model {model[:64]!r}: {nearest(model, known)}", "model_not_found", "model")
        return known[model]

    @app.get("/health")
    async def health() -> dict[str, str]:
        """This process answers."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: {"description": "a set of weights is not loaded yet, or none could be"}})
    async def ready() -> Response:
        """Whether a set of weights is loaded and none is still being loaded, and the state of each variant."""
        states = {entry.id: entry.state for entry in endpoint.watch.models()}
        status = 200 if endpoint.watch.ready else 503
        headers = {**_ALWAYS, **({} if status == 200 else {"Retry-After": "2"})}
        return JSONResponse({"ready": status == 200, "variants": states}, status, headers=headers)

    _add_page(app)
    description = _describe(app, endpoint)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(description)

    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)
    return app


def _add_page(app: FastAPI) -> None:
    """Plain HTML, CSS and JavaScript from the package: no build step, no CDN, and it works without a network."""
    folder = resources.files("serve") / "ui"
    for path, name in _PAGE.items():
        headers = {**_ALWAYS, "Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
        content, kind = (folder / name).read_bytes(), _TYPES[name.rpartition(".")[2]]

        async def page(content: bytes = content, kind: str = kind, headers: dict[str, str] = headers) -> Response:
            return Response(content, media_type=kind, headers=headers)

        app.add_api_route(path, page, include_in_schema=False)


async def _body(request: Request, most: int) -> bytes:
    """The body, cut off as soon as it is longer than `most` bytes."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # also keeps a foreign web page from posting without asking first
        raise Problem(415, f"content-type = {kind[:60]!r}: send application/json", "unsupported_media_type")
    declared = request.headers.get("content-length", "")
    large = Problem(413, f"the body is larger than {most:,} bytes", "body_too_large")
    if declared.isdigit() and int(declared[:20]) > most:
        raise large
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise large
    except TimeoutError:
        raise Problem(408, f"the body did not arrive within {_BODY_S:g} s", "timeout") from None
    except ClientDisconnect:
        raise Problem(400, "the body did not arrive", "disconnected") from None
    return bytes(body)


def _response(asked: Asked, answer: Answer) -> dict[str, Any]:
    seeds = [request.seed for request in asked.requests]
    pairs = zip(answer.pictures, seeds, strict=True)
    return {
        "created": int(time.time()),
        "model": asked.model,
        "output_format": asked.output_format,
        "size": asked.size,
        "data": [{"b64_json": _base64(picture), "seed": seed} for picture, seed in pairs],
        "sdxl_ray": _extras(answer),
    }


def _extras(answer: Answer) -> dict[str, Any]:
    first = answer.pictures[0]
    return {
        "artifact": first.artifact,
        "adapters": first.adapters,
        "truncated": {name: vars(text) for name, text in first.truncated.items()},
        "times": [{name: round(ms, 3) for name, ms in vars(p.times).items()} for p in answer.pictures],
    }


def _times(asked: Asked, answer: Answer) -> dict[str, str]:
    """Headers: hashes of the model and of the adapters beside it, the slowest picture's stages, the whole request."""
    first = answer.pictures[0]
    slowest = max((picture.times for picture in answer.pictures), key=lambda times: times.total_ms)
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


async def _events(asked: Asked, task: asyncio.Task[Answer], previews: asyncio.Queue[Preview]) -> AsyncIterator[bytes]:
    """OpenAI's events: pictures on the way, then the picture; or an error, since the status has been sent."""
    common = {
        "created_at": int(time.time()),
        "output_format": asked.output_format,
        "size": asked.size,
        "background": "opaque",
        "quality": "auto",
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
        data = {"b64_json": _base64(answer.pictures[0]), **common, "usage": None, "model": asked.model}
        data |= {"seed": asked.requests[0].seed, "sdxl_ray": {**_extras(answer), "total_ms": answer.total_ms}}
        yield _event("image_generation.completed", data)
    except Problem as problem:
        yield _event("error", problem.envelope)
    finally:
        task.cancel()


def _event(kind: str, data: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()


def _base64(picture: Picture | Preview) -> str:
    return base64.b64encode(picture.data).decode("ascii")


def _describe(app: FastAPI, endpoint: Endpoint) -> dict[str, Any]:
    """The OpenAPI description, with the request body as this endpoint checks it and the models that it serves."""
    description: dict[str, Any] = get_openapi(title=app.title, version=app.version, routes=app.routes)
    body = endpoint.desk.body.model_json_schema(ref_template="#/components/schemas/{model}")
    served = [name for name, place in endpoint.desk.layout.places.items() if place.group is not None]
    body["properties"]["model"]["anyOf"][0]["enum"] = served
    description["components"]["schemas"] |= {**body.pop("$defs"), "ImageRequest": body}
    post = description["paths"][_GENERATIONS]["post"]
    reference = {"$ref": "#/components/schemas/ImageRequest"}
    post["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference}}}
    post["responses"]["200"]["content"]["text/event-stream"] = {"schema": _EVENT}
    if len(endpoint.keys):
        description["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path in (path for path in description["paths"] if path.startswith("/v1/")):
            for operation in description["paths"][path].values():
                operation["security"] = [{"key": []}]
    return description


async def _on_problem(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    headers = {**_ALWAYS, **problem.headers}
    if problem.status in (408, 413):
        headers["Connection"] = "close"  # what is left of the body is not read
    return JSONResponse(problem.envelope, problem.status, headers=headers)


async def _on_http(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, or a path without this method."""
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    message = f"{request.method} {request.url.path[:100]}: {error.detail}"
    problem = Problem(error.status_code, message, codes.get(error.status_code, "http_error"))
    return JSONResponse(problem.envelope, problem.status, headers={**_ALWAYS, **(error.headers or {})})


async def _on_bug(_: Request, error: Exception) -> Response:
    """Ours. The traceback is in the log; a client is told nothing of it."""
    problem = Problem(500, f"the server failed: {type(error).__name__}; its log says more", "internal_error")
    return JSONResponse(problem.envelope, 500, headers=_ALWAYS)
