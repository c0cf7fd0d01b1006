"""What goes between the HTTP side and the replicas that draw: one picture ordered, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from serve.engine.request import PictureRequest, Times, Truncated


@dataclass(frozen=True)
class Order:
    """One picture. seconds: how long it may take from its arrival (clocks differ, durations do not).

    variant: the model id. previews: pictures on the way. compression: quality of a JPEG or WebP file, None: default.
    """

    variant: str
    request: PictureRequest
    output_format: str
    seconds: float
    previews: int = 0
    compression: int | None = None


@dataclass(frozen=True)
class Preview:
    """A picture on its way."""

    data: bytes
    step: int
    steps: int


@dataclass(frozen=True)
class Picture:
    """A finished picture in its file format, the hashes of what drew it, and what was cut off the request's texts."""

    data: bytes
    times: Times
    artifact: str
    adapters: dict[str, str] = field(default_factory=dict)
    truncated: dict[str, Truncated] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """Why a replica did not draw: a value, since an exception would be logged and wrapped on its way through Ray."""

    status: int
    code: str
    message: str
    param: str | None = None
