"""What a client gets instead of an image: the error envelope of the OpenAI API, with the status beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from sdxl_ray.errors import nearest

_KINDS = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class ErrorBody(BaseModel):
    """The inside of the envelope."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorEnvelope(BaseModel):
    """`{"error": {"message", "type", "param", "code"}}`."""

    error: ErrorBody


@dataclass(eq=False)
class ApiError(Exception):
    """A request that ends without an image.

    status: HTTP. code: a word for programs. param: dotted path of the field. retry_after_s: for 429 and 503.
    """

    status: int
    message: str
    code: str
    param: str | None = None
    retry_after_s: float | None = None

    @property
    def envelope(self) -> dict[str, Any]:
        """The body of the response."""
        kind = _KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds (RFC 9110), and what a client has to send with a key."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


def busy(
    reason: Literal["queue_full", "restarting", "deadline_passed", "starting"], message: str, after_s: float
) -> ApiError:
    """The server cannot do it now: 429 when there is too much to do, else 503."""
    return ApiError(429 if reason == "queue_full" else 503, message, reason, retry_after_s=after_s)


def of_validation(
    error: ValidationError, body: type[BaseModel], inner: type[BaseModel], reasons: Mapping[str, str]
) -> ApiError:
    """The first thing that is wrong with a request body: the field, the value and the limit.

    body: what it is checked against; inner: the same for the objects in its lists. reasons: by field, why other values
    are refused.
    """
    first = error.errors()[0]
    path = _dotted(first["loc"])
    kind, context = first["type"], first.get("ctx", {})
    if kind == "json_invalid":
        return ApiError(400, f"the body is not JSON: {context['error']}", "invalid_json")
    if kind == "extra_forbidden":
        fields = (body if len(first["loc"]) == 1 else inner).model_fields
        known = nearest(str(first["loc"][-1]), fields)
        return ApiError(400, f"unknown field {_short(path)}: {known}", "unknown_parameter", path[:100])
    message = first["msg"].removeprefix("Value error, ")
    if kind == "none_required":
        message = "only null is accepted"
    if kind in ("none_required", "literal_error") and path in reasons:
        message += f"; {reasons[path]}"
    given = "" if kind in ("missing", "model_type") else f" = {_short(first['input'])}"
    text = f"{path}{given}: {message[0].lower()}{message[1:]}" if path else f"the body: {message}"
    return ApiError(400, text, "missing_parameter" if kind == "missing" else "invalid_value", path or None)


def _dotted(location: tuple[str | int, ...]) -> str:
    """`("adapters", 0, "name")` -> `adapters[0].name`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _short(value: Any) -> str:
    text = repr(value)
    length = len(value) if isinstance(value, str) else len(text)
    return text if len(text) <= 80 else f"{text[:60]}... ({length:,} characters)"
