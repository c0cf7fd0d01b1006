"""What every path of the endpoint has: HEAD beside GET, paths with a slash at their end, and CORS."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Headers of responses that a page of another origin may read.
_EXPOSED = (
    *(f"x-sdxl-ray-{name}" for name in ("artifact", "adapters", "seed", "batch")),
    *(f"x-sdxl-ray-{name}-ms" for name in ("queue", "text", "denoise", "decode", "total")),
    "Retry-After",
)


def around(app: ASGIApp, cors_origins: Sequence[str]) -> ASGIApp:
    """The application with them. cors_origins: web sites whose pages may use it; none: no header of CORS is sent."""
    app = SlashMiddleware(HeadMiddleware(app))
    if not cors_origins:
        return app
    # Keys are in the Authorization header and there are no cookies, so no credentials are allowed. A browser asks
    # before it sends a key; this answers, and so needs none. Clients add headers of their own, hence "*".
    return CORSMiddleware(
        app,
        allow_origins=cors_origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        expose_headers=_EXPOSED,
        allow_private_network=True,  # a listed site may reach an endpoint on this machine or in this network
    )


class HeadMiddleware:
    """HEAD is answered as GET is, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_head = scope["method"] == "HEAD"

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.start":
                _allow_head(message)
            elif is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self.app({**scope, "method": "GET"} if is_head else scope, receive, without_body)


def _allow_head(message: Message) -> None:
    headers = MutableHeaders(scope=message)
    if headers.get("allow") == "GET":
        headers["allow"] = "GET, HEAD"


class SlashMiddleware:
    """`/v1/models/` is `/v1/models`: some clients join a base URL and a path so."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] == "http" and len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await self.app(scope, receive, send)
