"""The HTTP side: paths, headers, bodies and their limits, and the OpenAPI description."""

from __future__ import annotations

import asyncio
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from sdxl_ray import __version__
from sdxl_ray.errors import nearest
from serve.http import responses
from serve.http.address import base_url
from serve.http.endpoint import Endpoint, GeneratedImages
from serve.http.errors import ApiError, ErrorEnvelope
from serve.http.middleware import around
from serve.http.protocol import ImagesResponse, ModelBody, Models
from serve.http.request_parser import ParsedRequest
from serve.http.unknown_paths import no_such_path
from serve.replica.messages import Preview

#: A client that has not sent its body by then is not going to.
_BODY_S = 30.0
_GENERATIONS = "/v1/images/generations"
_IMAGES = "/image-files"
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

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorEnvelope} for status in (400, 401, 404, 408, 413, 415, 422, 429, 500, 503)
}


def build(endpoint: Endpoint) -> ASGIApp:
    """The application of one endpoint."""
    return around(_application(endpoint), endpoint.config.cors_origins)


def _application(endpoint: Endpoint) -> FastAPI:
    # FastAPI's own pages of documentation load scripts from elsewhere.
    app = FastAPI(title="sdxl-ray", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    _add_images(app, endpoint)
    _add_models(app, endpoint)
    _add_probes(app, endpoint)
    _add_page(app)
    _add_description(app, endpoint)
    app.add_exception_handler(ApiError, _on_problem)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)
    return app


def _add_images(app: FastAPI, endpoint: Endpoint) -> None:
    """Generating images, and fetching those that a response linked to."""

    @app.post(_GENERATIONS, response_model=ImagesResponse, responses=_ERRORS, operation_id="createImage")
    async def generations(request: Request) -> Response:
        """Draw images."""
        try:
            endpoint.keys.require(request.headers.get("authorization"))
            raw = await _body(request, endpoint.config.limits.body_bytes)
        except ApiError as problem:
            endpoint.failed(None, problem)
            raise
        asked = endpoint.take(raw)
        previews: asyncio.Queue[Preview] = asyncio.Queue()
        task = endpoint.start(asked, previews.put_nowait if asked.previews else None)
        if asked.stream:
            headers = {**_ALWAYS, "x-sdxl-ray-seed": str(asked.requests[0].seed)}
            return StreamingResponse(
                responses.events(asked, task, previews), media_type="text/event-stream", headers=headers
            )
        try:
            answer = await task
        finally:
            task.cancel()
        links = await _links(request, endpoint, asked, answer) if asked.linked else None
        return JSONResponse(
            responses.body(asked, answer, links), headers={**_ALWAYS, **responses.headers(asked, answer)}
        )

    @app.get(
        f"{_IMAGES}/{{name}}",
        response_class=Response,
        responses={
            200: {"content": {f"image/{kind}": {} for kind in ("png", "jpeg", "webp")}},
            **{status: _ERRORS[status] for status in (404, 503)},
        },
        operation_id="getImage",
    )
    async def image(name: str) -> Response:
        """An image that a response linked to. Whoever knows its name may have it, so it needs no key."""
        kept = await endpoint.images.get(name)
        caching = {"Cache-Control": f"private, max-age={kept.seconds}, immutable"}
        return Response(kept.data, media_type=kept.media_type, headers={**_ALWAYS, **caching})


def _add_models(app: FastAPI, endpoint: Endpoint) -> None:
    """The list of variants. Both paths need a key."""

    @app.get("/v1/models", response_model=Models, responses={401: _ERRORS[401]}, operation_id="listModels")
    async def models(request: Request) -> Models:
        """Every variant, those that could not start too."""
        endpoint.keys.require(request.headers.get("authorization"))
        return Models(data=endpoint.health.models())

    @app.get("/v1/models/{model}", response_model=ModelBody, responses={s: _ERRORS[s] for s in (401, 404)})
    async def model(request: Request, model: str) -> ModelBody:
        """One variant."""
        endpoint.keys.require(request.headers.get("authorization"))
        known = {entry.id: entry for entry in endpoint.health.models()}
        if model not in known:
            raise ApiError(404, f"no model {model[:64]!r}: {nearest(model, known)}", "model_not_found", "model")
        return known[model]


def _add_probes(app: FastAPI, endpoint: Endpoint) -> None:
    """Liveness and readiness. Neither needs a key."""

    @app.get("/health")
    async def health() -> dict[str, str]:
        """This process answers."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: {"description": "a set of weights is not loaded yet, or none could be"}})
    async def ready(request: Request) -> Response:
        """Whether a set of weights is loaded and none is still being loaded.

        Probes need no key. Callers with a key get the state of each variant too.
        """
        status = 200 if endpoint.health.ready else 503
        answer: dict[str, Any] = {"ready": status == 200}
        if endpoint.keys.allows(request.headers.get("authorization")):
            answer["variants"] = {entry.id: entry.state for entry in endpoint.health.models()}
        headers = {**_ALWAYS, **({} if status == 200 else {"Retry-After": "2"})}
        return JSONResponse(answer, status, headers=headers)


def _add_description(app: FastAPI, endpoint: Endpoint) -> None:
    """`/openapi.json`: call it last, since it describes the routes that are there."""
    described = {named: _describe(app, endpoint, named=named) for named in (False, True)}

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi(request: Request) -> JSONResponse:
        allowed = endpoint.keys.allows(request.headers.get("authorization"))
        return JSONResponse(described[allowed], headers=_ALWAYS)


async def _links(request: Request, endpoint: Endpoint, asked: ParsedRequest, answer: GeneratedImages) -> list[str]:
    """Keep the images; their addresses."""
    names = await endpoint.images.put([image.data for image in answer.images], asked.output_format)
    base = base_url(request, endpoint.config.public_url)
    return [f"{base}{_IMAGES}/{name}" for name in names]


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
        raise ApiError(415, f"content-type = {kind[:60]!r}: send application/json", "unsupported_media_type")
    declared = request.headers.get("content-length", "")
    large = ApiError(413, f"the body is larger than {most:,} bytes", "body_too_large")
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
        raise ApiError(408, f"the body did not arrive within {_BODY_S:g} s", "timeout") from None
    except ClientDisconnect:
        raise ApiError(400, "the body did not arrive", "disconnected") from None
    return bytes(body)


def _describe(app: FastAPI, endpoint: Endpoint, *, named: bool) -> dict[str, Any]:
    """The OpenAPI description, with the request body as this endpoint checks it.

    named: list the served models. Only callers who may use the API get that list.
    """
    description: dict[str, Any] = get_openapi(title=app.title, version=app.version, routes=app.routes)
    body = endpoint.parser.body.model_json_schema(ref_template="#/components/schemas/{model}")
    if named:
        served = [name for name, place in endpoint.parser.layout.places.items() if place.group is not None]
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
    assert isinstance(problem, ApiError)
    headers = {**_ALWAYS, **problem.headers}
    if problem.status in (408, 413):
        headers["Connection"] = "close"  # what is left of the body is not read
    return JSONResponse(problem.envelope, problem.status, headers=headers)


async def _on_http(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, or a path without this method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return await _on_problem(request, no_such_path(request.method, request.url.path, _paths(request.app)))
    codes = {405: "method_not_allowed"}
    message = f"{request.method} {request.url.path[:100]}: {error.detail}"
    problem = ApiError(error.status_code, message, codes.get(error.status_code, "http_error"))
    return JSONResponse(problem.envelope, problem.status, headers={**_ALWAYS, **(error.headers or {})})


def _paths(app: FastAPI) -> list[str]:
    return [route.path for route in app.routes if isinstance(route, APIRoute)]


async def _on_bug(_: Request, error: Exception) -> Response:
    """Ours. The traceback is in the log; a client is told nothing of it."""
    problem = ApiError(500, f"the server failed: {type(error).__name__}; its log says more", "internal_error")
    return JSONResponse(problem.envelope, 500, headers=_ALWAYS)
